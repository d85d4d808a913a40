"""The settings of LViT-Net. `reid_models.lvit_net` tells how sure each default is."""

from dataclasses import dataclass
from typing import Literal, get_args

from reid_models.lvit_global import is_hierarchical
from reid_models.lvit_units import LEVELS

Placement = Literal["behind", "levels"]
Exchange = Literal["tokens", "class_tokens"]
EmbedKind = Literal["feature", "neck"]


@dataclass(frozen=True, kw_only=True)
class LViTNetOptions:
    """Options of LViT-Net; the defaults are the reconstruction's first choice."""

    transformer: str = "vit_base_patch16_224"
    """Name of the global branch: any VisionTransformer of timm with a class token, a network of
    `transformer_networks`, or (another reading) a SwinTransformer of timm. D follows it."""

    transformer_weights: str | None = None
    """"timm", or a weights file of the global branch with timm's names; None follows
    `pretrained`. The local branch has no published weights."""

    patch_stride: int = 16
    """Pixels between the patches of a VisionTransformer; below the patch size they overlap."""

    drop_path: float = 0.1
    """Stochastic depth of the last block of either branch, growing linearly from 0 at the first."""

    side_information: float = 0.0
    """Factor on learned camera vectors in a VisionTransformer; 0 leaves them out."""

    local_widths: tuple[int, ...] = (96, 192, 384, 768)
    """Channels of the local branch's four stages, multiples of `norm_groups`."""

    local_blocks: int = 2
    """Blocks of each stage of the local branch."""

    norm_groups: int = 32
    """Groups of every GroupNorm in the local branch and LMSF; divides D."""

    lmsf_kernels: tuple[int, ...] = (3, 5, 7)
    """Odd sizes of LMSF's depth-wise convolutions."""

    lmsf_reduction: int = 16
    """D over the hidden dim of LMSF's attention over scales; divides D."""

    dfcf_iterations: int = 4
    """How often DFCF runs; with 0 the two branches are only concatenated."""

    share_iterations: bool = True
    """Whether all iterations of DFCF have the same weights, else each its own."""

    dfcf_placement: Placement = "behind"
    """"behind": DFCF follows both branches, LMSF before it. "levels": one iteration for each stage
    of the local branch, between equal parts of a VisionTransformer; LMSF follows."""

    dfcf_exchange: Exchange = "tokens"
    """"tokens": all tokens of a side are refined. "class_tokens": the class token alone, which on
    the local side is the mean of the tokens; it is then that side's summary."""

    dfcf_heads: int = 12
    """Attention heads of DFCF; divides D."""

    dfcf_mlp_ratio: int = 4
    """Hidden dim of DFCF's MLPs over D."""

    dfcf_dropout: float = 0.1
    """Dropout on DFCF's attention weights and on the outputs of its attention and MLPs."""

    reduction_dim: int | None = None
    """Dim that a linear layer brings the feature of 2 D to; None leaves the layer out."""

    embed_kind: EmbedKind = "feature"
    """"feature": the embedding is the feature before the neck, which the triplet loss judges;
    "neck": the neck's output."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("dfcf_placement", Placement),
            ("dfcf_exchange", Exchange),
            ("embed_kind", EmbedKind),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(choices))}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("drop_path", "dfcf_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        self._check_counts()
        self._check_reading()

    def _check_counts(self) -> None:
        for name, least in (
            ("patch_stride", 1),
            ("local_blocks", 1),
            ("norm_groups", 1),
            ("lmsf_reduction", 1),
            ("dfcf_iterations", 0),
            ("dfcf_heads", 1),
            ("dfcf_mlp_ratio", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.reduction_dim is not None and self.reduction_dim < 1:
            raise ValueError(f"reduction_dim must be at least 1 or None, got {self.reduction_dim}")
        if len(self.local_widths) != LEVELS or any(
            width < 1 or width % self.norm_groups for width in self.local_widths
        ):
            raise ValueError(
                f"local_widths must be {LEVELS} positive multiples of "
                f"norm_groups={self.norm_groups}, got {tuple(self.local_widths)}"
            )
        if not self.lmsf_kernels or any(k < 1 or k % 2 == 0 for k in self.lmsf_kernels):
            raise ValueError(
                f"lmsf_kernels must be odd and positive, got {tuple(self.lmsf_kernels)}"
            )

    def _check_reading(self) -> None:
        """The alternative readings that go together."""
        if self.dfcf_placement == "levels" and (
            self.dfcf_iterations != LEVELS or self.dfcf_exchange != "tokens"
        ):
            raise ValueError(
                f"dfcf_placement='levels' goes with dfcf_iterations={LEVELS} and "
                f"dfcf_exchange='tokens', got {self.dfcf_iterations} and {self.dfcf_exchange!r}"
            )
        if not self.hierarchical:
            return
        for name, value in (
            ("dfcf_placement", "behind"),
            ("patch_stride", 16),
            ("side_information", 0.0),
        ):
            if getattr(self, name) != value:
                raise ValueError(
                    f"transformer={self.transformer!r} goes with {name}={value!r} only, "
                    f"got {getattr(self, name)!r}"
                )

    @property
    def hierarchical(self) -> bool:
        """Whether the global branch is a Swin transformer."""
        return is_hierarchical(self.transformer)
