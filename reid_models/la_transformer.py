"""LA-Transformer and LA-TF++: a vision transformer searched by the pooled rows of its patches.

The patch tokens of a row are averaged to one local token. In training each local token is mixed
with the class token (GELT, "globally enhanced local token") and classified: LA-Transformer has a
head a row, LA-TF++ one head on the mean of the GELTs. The published test feature is the rows
without the class token, each normalised, for both systems: the heads and the class token only
steer the training.

Sources: Sharma, Kapil and Chapman, "Person Re-Identification with a Locally Aware
Transformer", arXiv 2106.03720, official code SiddhantKapil/LA-Transformer; LA-TF++: the course
project aditi184/Person_Re-Identification. Code and text of the two disagree on the meaning and
value of lambda (8 on the local token in both codes, 0.8 on the class token in LA-TF++'s text) and
on the input of LA-TF++'s triplet loss (the logits in code, the features in the text): both are
options.

Shapes: B batch, H W image size, D token dim, h w rows and columns of the patch grid, E embedding
dim, d bottleneck dim, C identities.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional

from reid_models.explanations import Explanation, PartSimilarity, branch_rollout
from reid_models.heads import BottleneckHead
from reid_models.la_units import LambdaSide, globally_enhanced_local_tokens, pool_rows
from reid_models.model import ReidModel
from reid_models.output import LossTerm, ReidOutput
from reid_models.pooling import full_precision
from reid_models.transformer_networks import check_transformer_name
from reid_models.vit_branch import VitBranch

HeadLayout = Literal["rows", "pooled"]
TripletInput = Literal["feature", "bottleneck", "logits"]
EmbedKind = Literal["rows", "mean"]


@dataclass(frozen=True, kw_only=True)
class LATransformerOptions:
    """Options of LA-Transformer; the defaults are the published model."""

    transformer: str = "vit_base_patch16_224.orig_in21k_ft_in1k"
    """Name of the backbone, with the tag of its weights at timm: any VisionTransformer of timm with
    a class token, or a network of `transformer_networks`."""

    transformer_weights: str | None = None
    """"timm", or a weights file of the backbone with timm's names; None follows `pretrained`."""

    patch_stride: int = 16
    """Pixels between patches; below the patch size they overlap."""

    drop_path: float = 0.0
    """Stochastic depth of the last transformer block, growing linearly from 0 at the first."""

    side_information: float = 0.0
    """Factor on the learned camera vectors; 0 (as published) leaves them out."""

    gelt_lambda: float = 8.0
    """Weight of one side of the GELT against 1 for the other."""

    gelt_lambda_on: LambdaSide = "local"
    """The side that `gelt_lambda` weighs: the "local" one, a pooled row, or the "global" one, the
    class token."""

    heads: HeadLayout = "rows"
    """"rows": one head a row of patches; "pooled": one head on the mean of the rows."""

    bottleneck_dim: int = 256
    """Dim between the two linear layers of a head."""

    dropout: float = 0.5
    """Dropout before a head's classifier."""

    triplet_on: TripletInput | None = None
    """What a head gives to the triplet loss: its input "feature", its "bottleneck" as it enters the
    classifier, or its "logits"; None leaves the triplet loss out."""

    embed_kind: EmbedKind = "rows"
    """"rows": every row L2-normalised, concatenated to unit length; "mean": the mean of the rows,
    not normalised."""

    embed_use_cls: bool = False
    """Whether the embedding is made of the GELTs instead of the plain rows."""

    def __post_init__(self) -> None:
        check_transformer_name(self.transformer)
        for name, choices in (
            ("gelt_lambda_on", get_args(LambdaSide)),
            ("heads", get_args(HeadLayout)),
            ("triplet_on", (*get_args(TripletInput), None)),
            ("embed_kind", get_args(EmbedKind)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, choices))}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("patch_stride", "bottleneck_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("drop_path", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.gelt_lambda < float("inf"):
            raise ValueError(f"gelt_lambda must be finite and >= 0, got {self.gelt_lambda}")


@dataclass(frozen=True, kw_only=True)
class LATransformerPPOptions(LATransformerOptions):
    """The same options with the defaults of LA-TF++."""

    transformer: str = "vit_base_patch16_224.augreg_in21k_ft_in1k"
    """As in LATransformerOptions; the weights are those that the name stood for in late 2021."""

    heads: HeadLayout = "pooled"
    """As in LATransformerOptions."""

    triplet_on: TripletInput | None = "feature"
    """As in LATransformerOptions. The text implies "feature"; the official code trains on
    "logits"."""


class LATransformer(ReidModel):
    """The network; see the module's docstring.

    At the published setting and 224x224 pixels: 14 rows, 91.3 M parameters (751 identities), 17.6
    GMAC an image, embedding dim 10752; LA-TF++ has 86.0 M (62 identities). The official
    checkpoints hold 577,519 more, of an ImageNet-style classifier that nothing uses. The image may
    have any size of at least one patch; pixels beyond the last whole patch are not read.

    Attributes:
        heads: name -> head, "row_0" (top) to "row_{h - 1}", or "pooled".
    """

    published_image_size = (224, 224)

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: tuple[int, int],
        camera_count: int,
        options: LATransformerOptions,
    ) -> None:
        super().__init__(num_classes, image_size=image_size, camera_count=camera_count)
        self.options = options
        self.transformer = VitBranch(
            options.transformer,
            self.image_size,
            patch_stride=options.patch_stride,
            drop_path=options.drop_path,
            camera_count=camera_count,
            side_information=options.side_information,
        )
        dim, rows = self.transformer.dim, self.transformer.grid[0]
        by_row = options.heads == "rows"
        self.heads = nn.ModuleDict(
            {
                name: BottleneckHead(
                    dim,
                    num_classes,
                    bottleneck_dim=options.bottleneck_dim,
                    dropout=options.dropout,
                )
                for name in ([f"row_{row}" for row in range(rows)] if by_row else ["pooled"])
            }
        )
        self.embedding_dim = rows * dim if options.embed_kind == "rows" else dim
        triplet_weight = 0.0 if options.triplet_on is None else 1.0
        self.loss_layout = tuple(LossTerm(n, triplet_weight=triplet_weight) for n in self.heads)

    @property
    def embedding_parts(self) -> tuple[tuple[str, int], ...]:
        """The rows of patches, unless the embedding is their mean."""
        if self.options.embed_kind == "mean":
            return super().embedding_parts
        rows = self.transformer.grid[0]
        return tuple((f"row_{row}", self.transformer.dim) for row in range(rows))

    def load_branch_weights(self, default: Literal["timm"] | None) -> None:
        """Fill the backbone from `transformer_weights`, else from `default`."""
        weights = self.options.transformer_weights or default
        if weights:
            self.transformer.load(weights)

    def extract(self, images_BCHW: Tensor, cameras_B: Tensor | None) -> ReidOutput:
        vit = self.transformer(images_BCHW, cameras_B)
        rows_BhD = pool_rows(full_precision(vit.patches))
        if not self.training and not self.options.embed_use_cls:
            return ReidOutput(self._embedding(rows_BhD))
        gelts_BhD = globally_enhanced_local_tokens(
            rows_BhD,
            full_precision(vit.summary),
            factor=self.options.gelt_lambda,
            factor_on=self.options.gelt_lambda_on,
        )
        embedding_BE = self._embedding(gelts_BhD if self.options.embed_use_cls else rows_BhD)
        if not self.training:
            return ReidOutput(embedding_BE)
        logits, metric_features = self._supervised(gelts_BhD)
        return ReidOutput(embedding_BE, logits=logits, metric_features=metric_features)

    def _embedding(self, rows_BhD: Tensor) -> Tensor:
        """[B, h, D] -> [B, E]; by rows, inner products are the mean of the rows' cosines."""
        if self.options.embed_kind == "mean":
            return rows_BhD.mean(dim=1)
        return functional.normalize(rows_BhD, dim=2).flatten(1) / rows_BhD.shape[1] ** 0.5

    def _supervised(self, gelts_BhD: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """[B, h, D] -> logits [B, C] and metric features of every head, by its name."""
        by_row = self.options.heads == "rows"
        features = gelts_BhD.unbind(dim=1) if by_row else (gelts_BhD.mean(dim=1),)
        logits: dict[str, Tensor] = {}
        metric_features: dict[str, Tensor] = {}
        for (name, head), feature_BD in zip(self.heads.items(), features, strict=True):
            assert isinstance(head, BottleneckHead)
            bottleneck_Bd = head.embed(feature_BD)
            logits_BC = head.classify(bottleneck_Bd)
            logits[name] = logits_BC
            metric_features[name] = full_precision(
                self._metric_feature(feature_BD, bottleneck_Bd, logits_BC)
            )
        return logits, metric_features

    def _metric_feature(
        self, feature_BD: Tensor, bottleneck_Bd: Tensor, logits_BC: Tensor
    ) -> Tensor:
        if self.options.triplet_on == "logits":
            return logits_BC
        return bottleneck_Bd if self.options.triplet_on == "bottleneck" else feature_BD

    def explanations(self) -> tuple[Explanation, ...]:
        """Rollouts to the class token and to the patches, which are what is searched; the rows."""
        found: list[Explanation] = [
            branch_rollout(self.transformer, title="Attention rollout, class token"),
            branch_rollout(self.transformer, title="Attention rollout, patches", reader="patches"),
        ]
        if self.options.embed_kind == "rows":
            rows = self.transformer.grid[0]
            found.append(PartSimilarity(title="Cosine of the rows", parts=rows))
        return tuple(found)
