"""LEViT-S and LEViT-L: a light windowed transformer with two last stages and five heads.

The trunk (stem, stages 1 and 2) feeds two copies of stage 3, kept at stride 16. Five features are
pooled from their maps, normalised, supervised and, concatenated, searched: the average of either
map, the maximum of the first, and the maxima of the second map's upper and lower half.

Source: Locally Enhanced Vision Transformer for efficient object re-identification, official code
YuhuiWang99/LEViT. It takes pixels in [0, 1], neither centred nor scaled. The MLP ratio of LEViT-L
is 2 in the last state of that code, but 1 in the name of its weights and by its published cost;
1 is the default here. A triplet loss on L2-normalised features, cross entropy without label
smoothing, and the mean over all seven terms complete the published training.

Shapes: B batch, H W image size, C channels of stage 3, h w rows and columns of its map (H / 16,
W / 16), D embedding dim.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from reid_models.explanations import Explanation, GradCam
from reid_models.heads import BNNeckHead
from reid_models.levit_import import load_official
from reid_models.levit_units import LEVIT_L, LEVIT_S, LEViTBackbone, LEViTSize
from reid_models.model import ReidModel
from reid_models.output import LossTerm, ReidOutput
from reid_models.pooling import full_precision

METRIC_HEADS = ("average_1", "average_2")
"""Heads with a triplet loss, and with a neck whose shift is trained."""

HEAD_NAMES = (*METRIC_HEADS, "max_1", "max_upper_2", "max_lower_2")
"""The five features, by pooling, part of the map, and branch; the order of the embedding."""

NeckShift = Literal["random", "zero"]


@dataclass(frozen=True, kw_only=True)
class LEViTOptions:
    """Options of LEViT-S and LEViT-L; the defaults are the published re-identification models."""

    window: int = 8
    """Side of the attention windows; height and width of the image are multiples of 16 times it.
    Published: 8 for re-identification, 7 for pre-training. No weight depends on it."""

    mlp_ratio: int = 1
    """Hidden channels of a block's MLP for each of its output channels."""

    drop_path: float | None = None
    """Stochastic depth of the last block, growing linearly from 0 at the first. None is as
    published: 0.05 for LEViT-S, 0.15 for LEViT-L."""

    neck_std: float = 0.1
    """Standard deviation of the necks' initial scale (around 1) and shift (around 0)."""

    frozen_neck_shift: NeckShift = "random"
    """The necks of the three max-pooled features have an untrained shift: "random" keeps its random
    start for good, as published, "zero" leaves the features centred."""

    backbone_weights: str | None = None
    """File of an ImageNet-trained LEViT of this size in the published layout; its classifier is
    skipped, and both copies of stage 3 start from its stage 3."""

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ValueError(f"window must be at least 2, got {self.window}")
        if self.mlp_ratio < 1:
            raise ValueError(f"mlp_ratio must be at least 1, got {self.mlp_ratio}")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must lie in [0, 1), got {self.drop_path}")
        if self.neck_std < 0:
            raise ValueError(f"neck_std must be >= 0, got {self.neck_std}")
        if self.frozen_neck_shift not in get_args(NeckShift):
            raise ValueError(
                f"frozen_neck_shift must be one of {', '.join(get_args(NeckShift))}, "
                f"got {self.frozen_neck_shift!r}"
            )


class LEViT(ReidModel):
    """The re-identification network of one size; see the module's docstring. It reads no camera."""

    size: ClassVar[LEViTSize]

    published_units: ClassVar[Mapping[str, str]] = {
        "backbone.stem": "stem",
        "backbone.stage1": "layer1",
        "backbone.stage2": "layer2",
        "backbone.stage3": "branch_1",
        "branch_2": "branch_2",
        **{f"heads.{name}.neck": f"bn_list.{i}" for i, name in enumerate(HEAD_NAMES)},
        **{f"heads.{name}.classifier": f"class_list.{i}" for i, name in enumerate(HEAD_NAMES)},
    }
    """Prefix of a tensor's name here -> prefix in a published re-identification checkpoint."""

    def __init__(
        self,
        num_classes: int,
        *,
        image_size: tuple[int, int],
        camera_count: int,
        options: LEViTOptions,
    ) -> None:
        super().__init__(num_classes, image_size=image_size, camera_count=camera_count)
        self.options = options
        drop_path = self.size.drop_path if options.drop_path is None else options.drop_path
        self.backbone = LEViTBackbone(
            self.size,
            self.image_size,
            window=options.window,
            mlp_ratio=options.mlp_ratio,
            drop_path=drop_path,
            last_stride=1,
        )
        self.branch_2 = copy.deepcopy(self.backbone.stage3)
        dim = self.backbone.dim
        self.heads = nn.ModuleDict(
            {name: _new_head(name, dim, num_classes, options) for name in HEAD_NAMES}
        )
        self.embedding_dim = len(HEAD_NAMES) * dim
        weight = 1 / (len(HEAD_NAMES) + len(METRIC_HEADS))
        self.loss_layout = tuple(
            LossTerm(name, id_weight=weight, triplet_weight=weight if name in METRIC_HEADS else 0.0)
            for name in HEAD_NAMES
        )

    @property
    def embedding_parts(self) -> tuple[tuple[str, int], ...]:
        """The five pooled features."""
        return tuple((name, self.embedding_dim // len(HEAD_NAMES)) for name in HEAD_NAMES)

    def load_branch_weights(self, default: Literal["timm"] | None) -> None:
        """Fill the backbone and both copies of stage 3 from `backbone_weights`.

        Raises:
            ValueError: the file does not fit, or none is given where pretrained weights are asked
                for: the published ones are not in timm.
        """
        if self.options.backbone_weights:
            load_official(self.backbone, self.options.backbone_weights, allow=("head.",))
            self.branch_2.load_state_dict(self.backbone.stage3.state_dict())
        elif default:
            raise ValueError(
                "timm has no weights of this LEViT (its levit_* are another network); give "
                "backbone_weights=FILE with the published ImageNet weights, or set "
                "pretrained=False"
            )

    def extract(self, images_BCHW: Tensor, cameras_B: Tensor | None) -> ReidOutput:
        heads = {name: self._head(name) for name in HEAD_NAMES}
        pooled = self._pooled(images_BCHW)
        features = {name: head.embed(pooled[name]) for name, head in heads.items()}
        embedding_BD = torch.cat(list(features.values()), dim=1)
        if not self.training:
            return ReidOutput(embedding_BD)
        logits = {name: head.classify(features[name]) for name, head in heads.items()}
        return ReidOutput(embedding_BD, logits=logits, metric_features=features)

    def _head(self, name: str) -> BNNeckHead:
        head = self.heads[name]
        assert isinstance(head, BNNeckHead)
        return head

    def _pooled(self, images_BCHW: Tensor) -> dict[str, Tensor]:
        """The five features before their necks, [B, C] each, in at least float32."""
        trunk_BChw = self.backbone.trunk(images_BCHW)
        first_BChw = full_precision(self.backbone.stage3(trunk_BChw))
        second_BChw = full_precision(self.branch_2(trunk_BChw))
        upper_BChw, lower_BChw = second_BChw.chunk(2, dim=2)
        return {
            "average_1": first_BChw.mean(dim=(-2, -1)),
            "average_2": second_BChw.mean(dim=(-2, -1)),
            "max_1": first_BChw.amax(dim=(-2, -1)),
            "max_upper_2": upper_BChw.amax(dim=(-2, -1)),
            "max_lower_2": lower_BChw.amax(dim=(-2, -1)),
        }

    def explanations(self) -> tuple[Explanation, ...]:
        """Grad-CAM of either last stage; attention within windows has no class token to follow."""
        return (
            GradCam(title="Grad-CAM, branch 1", layer=self.backbone.stage3),
            GradCam(title="Grad-CAM, branch 2", layer=self.branch_2),
        )


class LEViTSmall(LEViT):
    """LEViT-S: 3.7 M parameters without the classifiers, embedding dim 1920; an image of 256x128
    costs 0.66 GMAC."""

    size = LEVIT_S


class LEViTLarge(LEViT):
    """LEViT-L: 13.8 M parameters without the classifiers, embedding dim 3840; an image of 256x128
    costs 2.15 GMAC."""

    size = LEVIT_L


class LEViTClassifier(nn.Module):
    """The network that is pre-trained on ImageNet: images [B, 3, H, W] -> logits [B, classes].

    Args:
        size: `LEVIT_S` or `LEVIT_L`.
        num_classes: outputs.
        image_size, window, mlp_ratio, drop_path: as of `LEViTBackbone`, published values by
            default.

    Raises:
        ValueError: images of another size than `image_size`, which the windows need not tile.
    """

    published_units: ClassVar[Mapping[str, str]] = {
        **{f"backbone.{name}": name for name in LEViTBackbone.published_units.values()},
        "head": "head",
    }
    """Prefix of a tensor's name here -> prefix in a published ImageNet checkpoint."""

    def __init__(
        self,
        size: LEViTSize,
        num_classes: int = 1000,
        *,
        image_size: tuple[int, int] = (224, 224),
        window: int = 7,
        mlp_ratio: int = 1,
        drop_path: float | None = None,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.backbone = LEViTBackbone(
            size,
            image_size,
            window=window,
            mlp_ratio=mlp_ratio,
            drop_path=size.pretraining_drop_path if drop_path is None else drop_path,
            last_stride=2,
        )
        self.head = nn.Linear(self.backbone.dim, num_classes)
        nn.init.kaiming_normal_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        height, width = self.image_size
        if tuple(images_BCHW.shape[1:]) != (3, height, width):
            raise ValueError(
                f"this classifier takes images of shape [B, 3, {height}, {width}], "
                f"got {list(images_BCHW.shape)}"
            )
        return self.head(full_precision(self.backbone(images_BCHW)).mean(dim=(-2, -1)))


def _new_head(name: str, dim: int, num_classes: int, options: LEViTOptions) -> BNNeckHead:
    trained = name in METRIC_HEADS
    head = BNNeckHead(dim, num_classes, neck_std=options.neck_std, train_shift=trained)
    if not trained and options.frozen_neck_shift == "zero":
        nn.init.zeros_(head.neck.bias)
    return head
