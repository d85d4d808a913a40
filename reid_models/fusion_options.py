"""The options of FusionReID; `fusion_reid` is the network."""

from dataclasses import dataclass
from typing import Literal, get_args

from reid_models.cnn_branch import Stem
from reid_models.fusion_plan import FEATURE_NAMES, HtmMode
from reid_models.fusion_units import Sharing
from reid_models.timm_names import check_timm_name
from reid_models.transformer_networks import check_transformer_name


@dataclass(frozen=True, kw_only=True)
class FusionReIDOptions:
    """Options of FusionReID; the defaults are the published ResNet-50 + ViT-B/16 model."""

    cnn: str | None = "resnet50"
    """timm name of the CNN branch; any network whose forward_features gives a [B, C, h, w] map.
    None leaves the branch out: the model is then the other branch with its head."""

    cnn_weights: str | None = None
    """"timm", or a weights file of the CNN with the names of timm, which are torchvision's for the
    ResNets; None follows `pretrained`."""

    stem: Stem = "reid"
    """"reid" (no ReLU behind the stem's batch norm, 2x2 max pooling) or "torchvision". ResNets
    only: another CNN keeps its own stem."""

    last_stride: int = 1
    """1 keeps the resolution of the CNN's last stage; 2 is the network as published."""

    transformer: str | None = "vit_base_patch16_224"
    """Name of the transformer branch: any VisionTransformer of timm's with a class token (as the
    published vit_base_patch16_224 and deit_base_patch16_224), "t2t_vit_t_14", "t2t_vit_t_24", or
    "vit_small_dim768_patch16_224", which the published code calls vit_small_patch16_224. None
    leaves the branch out."""

    transformer_weights: str | None = None
    """"timm", or a weights file of the transformer with the names of timm, torchvision or T2T's
    code; None follows `pretrained`."""

    patch_stride: int = 12
    """Pixels between patches; below the patch size they overlap. T2T takes 16 only."""

    drop_path: float = 0.1
    """Stochastic depth of the last transformer block, growing linearly from 0 at the first."""

    side_information: float = 3.0
    """Factor on the learned vectors of the cameras and views; 0 leaves them out."""

    view_count: int = 0
    """Views (front, back, ...) that the training set tells apart; with several cameras there is a
    vector for each pair of camera and view. 0 or 1 leaves views out."""

    fusion_dim: int = 768
    """D, the dim of the fused features (MIX_DIM in the published code); a multiple of
    fusion_heads."""

    fusion_heads: int = 12
    """Attention heads of the encoding and fusion units."""

    htm_depth: int = 2
    """Number of stacked Heterogeneous Transmission Modules."""

    htm_mode: HtmMode = "encode_fuse"
    """Steps of a module: "encode_fuse" (SEU, then MFU), "encode" (SEU alone), "fuse" (MFU alone)
    or "fuse_encode" (MFU, then SEU)."""

    seu_sharing: Sharing = "shared"
    """"shared": one encoding unit (SEU) a module for both branches; "separate": one a branch."""

    mfu_sharing: Sharing = "separate"
    """"separate": one fusion unit (MFU) a branch; "shared": one a module for both. The published
    share_pattern 0 to 3 are, as SEU and MFU: shared and separate, both separate, separate and
    shared, both shared."""

    lru_kernel: int = 1
    """Odd kernel of the depth-wise convolution in the Local Refinement Units."""

    embed_features: Literal["all"] | tuple[str, ...] = "all"
    """Features concatenated to the embedding, in this order: "all", or some of FEATURE_NAMES. What
    only the others need is not computed in eval mode."""

    def __post_init__(self) -> None:
        self._check_branches()
        self._check_fusion()
        unknown = [name for name in self.embedded if name not in self.supervised]
        if unknown or not self.embedded or len(set(self.embedded)) != len(self.embedded):
            raise ValueError(
                "embed_features must be 'all' or distinct names out of "
                f"{', '.join(self.supervised)}, got {self.embed_features!r}"
            )

    def _check_branches(self) -> None:
        if self.cnn is None and self.transformer is None:
            raise ValueError("cnn and transformer cannot both be None")
        for branch in ("cnn", "transformer"):
            weights = getattr(self, f"{branch}_weights")
            if getattr(self, branch) is None and weights is not None:
                raise ValueError(f"{branch}_weights={weights!r} without a {branch} to load them")
        if self.cnn is not None:
            check_timm_name(self.cnn, option="cnn")
        if self.transformer is not None:
            check_transformer_name(self.transformer)
        self._check_choice("stem", Stem)
        if self.last_stride not in (1, 2):
            raise ValueError(f"last_stride must be 1 or 2, got {self.last_stride}")
        if self.patch_stride < 1:
            raise ValueError(f"patch_stride must be at least 1, got {self.patch_stride}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"drop_path must lie in [0, 1), got {self.drop_path}")
        if self.view_count < 0:
            raise ValueError(f"view_count must be at least 0, got {self.view_count}")

    def _check_fusion(self) -> None:
        for name in ("fusion_heads", "htm_depth"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.fusion_dim < 1 or self.fusion_dim % self.fusion_heads:
            raise ValueError(
                f"fusion_dim must be a positive multiple of fusion_heads={self.fusion_heads}, "
                f"got {self.fusion_dim}"
            )
        if self.lru_kernel < 1 or self.lru_kernel % 2 == 0:
            raise ValueError(f"lru_kernel must be odd and positive, got {self.lru_kernel}")
        self._check_choice("htm_mode", HtmMode)
        self._check_choice("seu_sharing", Sharing)
        self._check_choice("mfu_sharing", Sharing)

    def _check_choice(self, name: str, choices: object) -> None:
        if getattr(self, name) not in get_args(choices):
            raise ValueError(
                f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}"
            )

    @property
    def supervised(self) -> tuple[str, ...]:
        """The features that the branches give: all six of FEATURE_NAMES, or that of one branch."""
        if self.cnn is None:
            return ("transformer_global",)
        if self.transformer is None:
            return ("cnn_global",)
        return FEATURE_NAMES

    @property
    def embedded(self) -> tuple[str, ...]:
        """The names behind `embed_features`."""
        return self.supervised if self.embed_features == "all" else tuple(self.embed_features)
