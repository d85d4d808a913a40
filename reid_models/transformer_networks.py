"""Vision transformers by name: those of timm, and three published ones that timm lacks.

Each comes as timm's `VisionTransformer`, so that whoever uses one asks it for `embed_dim`,
`patch_embed.grid_size` and `num_prefix_tokens` and need not know its name. A new network is one
more line in `OWN_NETWORKS`.
"""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, Protocol

import timm
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from reid_models.t2t import build_t2t_vit
from reid_models.timm_names import check_timm_name


class NetworkBuilder(Protocol):
    """Builds a network without classifier; `drop_path` is of its last block."""

    def __call__(
        self, image_size: tuple[int, int], *, patch_stride: int, drop_path: float
    ) -> VisionTransformer: ...


class OverlappingPatchEmbed(PatchEmbed):
    """timm's patch embedding with a stride of its own; (H - patch) // stride + 1 rows."""

    def __init__(self, *args: Any, stride: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        patch, out_channels = self.patch_size[0], self.proj.out_channels
        if not 1 <= stride <= patch or min(self.img_size) < patch:
            raise ValueError(
                f"patch_stride must lie in 1..{patch} and image_size be at least {patch}x{patch}, "
                f"got patch_stride={stride} and image_size={self.img_size}"
            )
        self.proj.stride = (stride, stride)
        rows, columns = ((pixels - patch) // stride + 1 for pixels in self.img_size)
        self.grid_size = (rows, columns)
        self.num_patches = rows * columns
        nn.init.normal_(self.proj.weight, std=math.sqrt(2.0 / (patch * patch * out_channels)))


class QueryScale(nn.Module):
    """Multiplies the queries of an attention, next to the usual 1 / sqrt(head dim)."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, queries: Tensor) -> Tensor:
        return self.factor * queries


def build_wide_small_vit(
    image_size: tuple[int, int], *, patch_stride: int, drop_path: float
) -> VisionTransformer:
    """The first "ViT-S/16" of timm and of the TransReID family: 8 blocks of 8 heads at dim 768.

    Its attention is scaled by the dim of the tokens, not of a head, and has no query, key and value
    biases. timm's `vit_small_patch16_224` of today is another network, 384 wide and 12 deep.
    """
    dim, heads = 768, 8
    trunk = VisionTransformer(
        img_size=image_size,
        num_classes=0,
        embed_dim=dim,
        depth=8,
        num_heads=heads,
        mlp_ratio=3.0,
        qkv_bias=False,
        drop_path_rate=drop_path,
        embed_layer=partial(OverlappingPatchEmbed, stride=patch_stride),
    )
    for block in trunk.blocks:
        block.attn.q_norm = QueryScale(heads**-0.5)
    return trunk


OWN_NETWORKS: Mapping[str, NetworkBuilder] = {
    "t2t_vit_t_14": partial(build_t2t_vit, dim=384, depth=14, heads=6),
    "t2t_vit_t_24": partial(build_t2t_vit, dim=512, depth=24, heads=8),
    "vit_small_dim768_patch16_224": build_wide_small_vit,
}
"""Networks by names that timm does not know."""


def check_transformer_name(name: str) -> None:
    """Accept a name of `OWN_NETWORKS`, or one that timm knows.

    Raises:
        ValueError: no such network, with the nearest name.
    """
    nearest = get_close_matches(name, OWN_NETWORKS, n=1, cutoff=0.8)
    if name in OWN_NETWORKS:
        return
    if nearest and not timm.is_model(name.partition(".")[0]):
        raise ValueError(
            f"transformer={name!r} is no known network; the nearest name is {nearest[0]!r}"
        )
    check_timm_name(name, option="transformer")


def build_transformer(
    name: str, image_size: tuple[int, int], *, patch_stride: int, drop_path: float
) -> VisionTransformer:
    """The network of a name, without classifier, with a class token and a position table.

    Raises:
        ValueError: an unknown name, another kind of network, or a stride or image size that does
            not go with the patch size.
    """
    check_transformer_name(name)
    builder = OWN_NETWORKS.get(name) or partial(_build_from_timm, name)
    trunk = builder(image_size, patch_stride=patch_stride, drop_path=drop_path)
    nn.init.trunc_normal_(trunk.cls_token, std=0.02)
    return trunk


def _build_from_timm(
    name: str, image_size: tuple[int, int], *, patch_stride: int, drop_path: float
) -> VisionTransformer:
    try:
        trunk = timm.create_model(
            name,
            num_classes=0,
            global_pool="token",
            fc_norm=False,
            img_size=image_size,
            drop_path_rate=drop_path,
            embed_layer=partial(OverlappingPatchEmbed, stride=patch_stride),
        )
    except (TypeError, AssertionError) as error:
        raise ValueError(f"transformer={name!r} is no plain vision transformer: {error}") from error
    if not isinstance(trunk, VisionTransformer) or not trunk.has_class_token:
        raise ValueError(f"transformer={name!r} is no timm VisionTransformer with a class token")
    if trunk.pos_embed is None:
        raise ValueError(f"transformer={name!r} has no learned position embedding")
    return trunk
