"""T2T-ViT: a vision transformer whose patches are made in three soft splits instead of one cut.

Each split unfolds overlapping windows into tokens; a narrow one-head transformer works on them, and
they are laid out as a map again for the next split. The strides 4, 2 and 2 leave one token in 16x16
pixels, at any image size. What follows is a plain vision transformer with a fixed sinusoidal
position table; published weights bring a table of their own, which is fixed as well.

Source: Yuan et al., "Tokens-to-Token ViT", ICCV 2021 (arXiv 2101.11986); official code
yitu-opensource/T2T-ViT, the "transformer" flavour (T2T-ViT_t), whose attention is scaled by the
width of the unfolded tokens.

Shapes: B batch, H W image size, C channels of a map, N tokens, F dim of unfolded tokens, D dim.
"""

from typing import Any

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 16
"""Pixels between the tokens of the last split."""

_SPLITS = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
"""Kernel, stride and padding of the three soft splits."""

_TOKEN_DIM = 64
_MLP_RATIO = 3.0


class TokenAttention(nn.Module):
    """One-head attention to a smaller dim, [B, N, F] -> [B, N, D]; the shortcut starts at V."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.scale = in_dim**-0.5
        self.qkv = nn.Linear(in_dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens_BNF: Tensor) -> Tensor:
        query_B1ND, key_B1ND, value_B1ND = self.qkv(tokens_BNF).unsqueeze(1).chunk(3, dim=-1)
        attended_B1ND = functional.scaled_dot_product_attention(
            query_B1ND, key_B1ND, value_B1ND, scale=self.scale
        )
        return (value_B1ND + self.proj(attended_B1ND)).squeeze(1)


class TokenTransformer(nn.Module):
    """The narrow transformer behind a soft split, [B, N, F] -> [B, N, D]."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_dim)
        self.attn = TokenAttention(in_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=dim)

    def forward(self, tokens_BNF: Tensor) -> Tensor:
        tokens_BND = self.attn(self.norm1(tokens_BNF))
        return tokens_BND + self.mlp(self.norm2(tokens_BND))


class TokensToTokens(nn.Module):
    """Patch embedding by three soft splits, [B, 3, H, W] -> [B, N, D]; takes timm's arguments.

    Attributes:
        grid_size: rows and columns of the N tokens, row-major.
        num_patches: N.
    """

    def __init__(
        self, img_size: tuple[int, int], in_chans: int, embed_dim: int, **_of_timm: Any
    ) -> None:
        super().__init__()
        rows, columns = (_split_lengths(pixels) for pixels in img_size)
        self.grids = list(zip(rows, columns, strict=True))
        self.grid_size = self.grids[-1]
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        (first, *_), (second, *_), (third, *_) = _SPLITS
        self.attention1 = TokenTransformer(in_chans * first**2, _TOKEN_DIM)
        self.attention2 = TokenTransformer(_TOKEN_DIM * second**2, _TOKEN_DIM)
        self.project = nn.Linear(_TOKEN_DIM * third**2, embed_dim)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        map_BCHW = images_BCHW
        for number, unit in enumerate((self.attention1, self.attention2)):
            tokens_BND = unit(_soft_split(map_BCHW, *_SPLITS[number]))
            map_BCHW = tokens_BND.transpose(1, 2).unflatten(2, self.grids[number])
        return self.project(_soft_split(map_BCHW, *_SPLITS[2]))


def build_t2t_vit(
    image_size: tuple[int, int],
    *,
    patch_stride: int,
    drop_path: float,
    dim: int,
    depth: int,
    heads: int,
) -> VisionTransformer:
    """A T2T-ViT_t without classifier, as timm's class with another patch embedding.

    Raises:
        ValueError: a patch_stride other than 16, which the soft splits do not allow.
    """
    if patch_stride != STRIDE:
        raise ValueError(
            f"the tokens of a T2T-ViT lie {STRIDE} pixels apart: patch_stride must be {STRIDE}, "
            f"got {patch_stride}"
        )
    trunk = VisionTransformer(
        img_size=image_size,
        num_classes=0,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_ratio=_MLP_RATIO,
        qkv_bias=False,
        drop_path_rate=drop_path,
        embed_layer=TokensToTokens,
        norm_layer=nn.LayerNorm,
    )
    trunk.pos_embed = nn.Parameter(
        sinusoid_table(1 + trunk.patch_embed.num_patches, dim), requires_grad=False
    )
    return trunk


def sinusoid_table(positions: int, dim: int) -> Tensor:
    """[1, positions, dim]: sines in even and cosines in odd columns, position 0 the class token.

    Source: Vaswani et al., "Attention Is All You Need" (arXiv 1706.03762), section 3.5.
    """
    column = torch.arange(dim)
    rate = 10000.0 ** (-2.0 * (column // 2).double() / dim)
    angle = torch.arange(positions).double().unsqueeze(1) * rate
    return torch.where(column % 2 == 0, angle.sin(), angle.cos()).float().unsqueeze(0)


def _split_lengths(pixels: int) -> list[int]:
    """Windows along one side behind each of the three splits."""
    lengths = []
    for kernel, stride, padding in _SPLITS:
        pixels = (pixels + 2 * padding - kernel) // stride + 1
        lengths.append(pixels)
    return lengths


def _soft_split(map_BCHW: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """[B, C, h, w] -> [B, N, C * kernel^2]."""
    return functional.unfold(map_BCHW, kernel, stride=stride, padding=padding).transpose(1, 2)
