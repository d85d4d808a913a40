"""FusionReID: a CNN and a vision transformer, fused by stacked mutual attention.

Both branches see the same image. Local Refinement Units bring their last maps to one channel dim;
Heterogeneous Transmission Modules then let one summary token a branch read the other branch's
tokens. Six features are supervised and, concatenated, searched.

Source: Wang et al., "Unity is Strength: Unifying Convolutional and Transformeral Features for
Better Person Re-Identification", arXiv 2412.17239; official code 924973292/FusionReID. The
published parameter counts are those of an encoding unit that the branches share, which is the
default here; the last state of that code has two.

Shapes: B batch, H W image size, C channels of a branch, D fusion dim, h w rows and columns of a
map, N tokens of one branch.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from reid_models.cnn_branch import CnnBranch, Stem
from reid_models.fusion_units import (
    BranchPair,
    HeterogeneousTransmissionModule,
    LocalRefinementUnit,
    SeuSharing,
)
from reid_models.heads import BNNeckHead
from reid_models.model import ReidModel
from reid_models.output import LossTerm, ReidOutput
from reid_models.pooling import GeM, full_precision
from reid_models.timm_names import check_timm_name
from reid_models.vit_branch import VitBranch

FEATURE_NAMES = (
    "cnn_global",
    "transformer_global",
    "cnn_initial",
    "transformer_initial",
    "cnn_fused",
    "transformer_fused",
)
"""The six supervised features: of each branch alone, pooled behind the LRU, behind the last HTM."""


@dataclass(frozen=True, kw_only=True)
class FusionReIDOptions:
    """Options of FusionReID; the defaults are the published ResNet-50 + ViT-B/16 model."""

    cnn: str = "resnet50"
    """timm name of the CNN branch; any network whose forward_features gives a [B, C, h, w] map."""

    cnn_weights: str | None = None
    """"timm", or a weights file of the CNN with timm's names; None follows `pretrained`."""

    stem: Stem = "reid"
    """"reid" (no ReLU behind the stem's batch norm, 2x2 max pooling) or "torchvision". ResNets
    only: another CNN keeps its own stem."""

    last_stride: int = 1
    """1 keeps the resolution of the CNN's last stage; 2 is the network as published."""

    transformer: str = "vit_base_patch16_224"
    """timm name of the transformer branch; any VisionTransformer with a class token."""

    transformer_weights: str | None = None
    """"timm", or a weights file of the transformer with timm's names; None follows `pretrained`."""

    patch_stride: int = 12
    """Pixels between patches; below the patch size they overlap."""

    drop_path: float = 0.1
    """Stochastic depth of the last transformer block, growing linearly from 0 at the first."""

    side_information: float = 3.0
    """Factor on the learned camera vectors; 0 leaves them out."""

    fusion_dim: int = 768
    """D, the dim of the fused features; a multiple of fusion_heads."""

    fusion_heads: int = 12
    """Attention heads of the encoding and fusion units."""

    htm_depth: int = 2
    """Number of stacked Heterogeneous Transmission Modules."""

    seu_sharing: SeuSharing = "shared"
    """"shared": one encoding unit a module for both branches; "separate": one a branch."""

    lru_kernel: int = 1
    """Odd kernel of the depth-wise convolution in the Local Refinement Units."""

    embed_features: Literal["all"] | tuple[str, ...] = "all"
    """Features concatenated to the embedding, in this order: "all", or some of FEATURE_NAMES."""

    def __post_init__(self) -> None:
        check_timm_name(self.cnn, option="cnn")
        check_timm_name(self.transformer, option="transformer")
        for name, choices in (("stem", Stem), ("seu_sharing", SeuSharing)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(choices))}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("patch_stride", "fusion_heads", "htm_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.last_stride not in (1, 2):
            raise ValueError(f"last_stride must be 1 or 2, got {self.last_stride}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must lie in [0, 1), got {self.drop_path}")
        if self.fusion_dim < 1 or self.fusion_dim % self.fusion_heads:
            raise ValueError(
                f"fusion_dim must be a positive multiple of fusion_heads={self.fusion_heads}, "
                f"got {self.fusion_dim}"
            )
        if self.lru_kernel < 1 or self.lru_kernel % 2 == 0:
            raise ValueError(f"lru_kernel must be odd and positive, got {self.lru_kernel}")
        self._check_embed_features()

    def _check_embed_features(self) -> None:
        names = self.embedded
        unknown = [name for name in names if name not in FEATURE_NAMES]
        if unknown or not names or len(set(names)) != len(names):
            raise ValueError(
                f"embed_features must be 'all' or distinct names out of {', '.join(FEATURE_NAMES)},"
                f" got {self.embed_features!r}"
            )

    @property
    def embedded(self) -> tuple[str, ...]:
        """The names behind `embed_features`."""
        return FEATURE_NAMES if self.embed_features == "all" else tuple(self.embed_features)


class FusionReID(ReidModel):
    """The network; see the module's docstring.

    At the published setting and 256x128 pixels: 158.5 M parameters, 29.1 GMAC an image, embedding
    dim 5888. Any image size of at least 32x32 pixels and one patch works; the size is fixed when
    the model is built.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: tuple[int, int],
        camera_count: int,
        options: FusionReIDOptions,
    ) -> None:
        super().__init__(num_classes, image_size=image_size, camera_count=camera_count)
        self.options = options
        dim, heads = options.fusion_dim, options.fusion_heads
        self.cnn = CnnBranch(
            options.cnn, self.image_size, stem=options.stem, last_stride=options.last_stride
        )
        self.transformer = VitBranch(
            options.transformer,
            self.image_size,
            patch_stride=options.patch_stride,
            drop_path=options.drop_path,
            camera_count=camera_count,
            side_information=options.side_information,
        )
        self.gem_global = GeM()
        self.lru_cnn = LocalRefinementUnit(self.cnn.dim, dim, kernel=options.lru_kernel)
        self.lru_transformer = LocalRefinementUnit(
            self.transformer.dim, dim, kernel=options.lru_kernel
        )
        self.gem_cnn, self.gem_transformer = GeM(), GeM()
        self.htms = nn.ModuleList(
            HeterogeneousTransmissionModule(dim, heads, seu_sharing=options.seu_sharing)
            for _ in range(options.htm_depth)
        )
        dims = dict.fromkeys(FEATURE_NAMES, dim)
        dims |= {"cnn_global": self.cnn.dim, "transformer_global": self.transformer.dim}
        self.heads = nn.ModuleDict(
            {name: BNNeckHead(feature_dim, num_classes) for name, feature_dim in dims.items()}
        )
        self.embedding_dim = sum(dims[name] for name in options.embedded)
        self.loss_layout = tuple(LossTerm(name) for name in FEATURE_NAMES)

    def load_branch_weights(self, default: Literal["timm"] | None) -> None:
        """Fill the two branches from `cnn_weights` and `transformer_weights`, else `default`."""
        cnn_weights = self.options.cnn_weights or default
        if cnn_weights:
            self.cnn.load(cnn_weights)
        transformer_weights = self.options.transformer_weights or default
        if transformer_weights:
            self.transformer.load(transformer_weights)

    def extract(self, images_BCHW: Tensor, cameras_B: Tensor | None) -> ReidOutput:
        features = self._features(images_BCHW, cameras_B)
        embedding_BD = torch.cat([features[name] for name in self.options.embedded], dim=1)
        if not self.training:
            return ReidOutput(embedding_BD)
        logits = {name: self.heads[name](feature) for name, feature in features.items()}
        return ReidOutput(embedding_BD, logits=logits, metric_features=features)

    def _features(self, images_BCHW: Tensor, cameras_B: Tensor | None) -> dict[str, Tensor]:
        """The six features, [B, d] each, in at least float32."""
        cnn_BChw = self.cnn(images_BCHW)
        vit = self.transformer(images_BCHW, cameras_B)
        maps = BranchPair(self.lru_cnn(cnn_BChw), self.lru_transformer(vit.patches))
        tokens = BranchPair(*(map_BDhw.flatten(2).transpose(1, 2) for map_BDhw in maps))
        initial = BranchPair(self.gem_cnn(maps.cnn), self.gem_transformer(maps.transformer))
        fused = initial
        for htm in self.htms:
            fused = htm(fused, tokens)
        features = {
            "cnn_global": self.gem_global(cnn_BChw),
            "transformer_global": vit.summary,
            "cnn_initial": initial.cnn,
            "transformer_initial": initial.transformer,
            "cnn_fused": fused.cnn,
            "transformer_fused": fused.transformer,
        }
        return {name: full_precision(feature_Bd) for name, feature_Bd in features.items()}
