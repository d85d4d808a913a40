"""LEViT's backbone: local enhancement, cosine window attention, and the stages made of them.

Locally Enhanced Vision Transformer, official code YuhuiWang99/LEViT. Everything is a convolution
with batch norm on a channels-first map; windows of w x w positions attend within themselves. There
is no position embedding of any kind, so the window may change between pre-training and re-
identification. The published figure draws attention in stage 3 as well; code and weights have none
there, and neither has this.

The published network computes query, key and value by three convolutions over the same map. Here
they are one convolution whose groups give all three, which is the same arithmetic; see
`reid_models.levit_import` for the published layout of the weights.

Shapes: B batch, C channels, H W rows and columns of the map, G = C / 4 groups of channels,
w window side, N windows of the whole batch, h heads, T = w * w positions of a window, d channels of
a head.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from timm.layers import ConvNormAct, DropPath
from torch import Tensor, nn
from torch.nn import functional

from reid_models.pooling import full_precision

GROUP_WIDTH = 4
"""Channels of a group in every 3x3 convolution behind the stem."""

_STEM_WIDTH = 16
_DEPTHS = (4, 7, 4)
_INITIAL_SCALE = 10.0
_LARGEST_LOG_SCALE = 4.6052  # a factor of 100
_SMALLEST_LENGTH = 1e-12


@dataclass(frozen=True, kw_only=True)
class LEViTSize:
    """What sets the published sizes apart."""

    dim: int
    """Channels of stage 1; stages 2 and 3 have twice and four times as many."""

    heads: tuple[int, int]
    """Attention heads of stages 1 and 2; stage 3 has no attention."""

    pretraining_drop_path: float
    """Stochastic depth of the last block when trained as an ImageNet classifier."""

    drop_path: float
    """Stochastic depth of the last block when trained for re-identification."""


LEVIT_S = LEViTSize(dim=96, heads=(1, 2), pretraining_drop_path=0.05, drop_path=0.05)
LEVIT_L = LEViTSize(dim=192, heads=(2, 4), pretraining_drop_path=0.10, drop_path=0.15)


def local_enhancement(
    channels: int, *, copies: int = 1, stride: int = 1, activate: bool = False
) -> ConvNormAct:
    """LE: a 3x3 convolution within groups of four channels, then batch norm, and ReLU if asked.

    [B, C, H, W] -> [B, copies * C, H / stride, W / stride]; the channels lie in the order (group,
    copy, channel of the group).
    """
    return ConvNormAct(
        channels,
        copies * channels,
        3,
        stride=stride,
        groups=channels // GROUP_WIDTH,
        apply_act=activate,
    )


class EnhancedAttention(nn.Module):
    """Cosine attention within windows plus a local path from the values, [B, C, H, W] -> the same.

    `proj(relu(softmax(tau * cos(q, k)) v + LE(v)))` with q, k, v = LE(x) and one learned factor
    tau <= 100 a head.
    """

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        if dim % (heads * GROUP_WIDTH):
            raise ValueError(
                f"dim must be a multiple of {GROUP_WIDTH} times heads={heads}, got {dim}"
            )
        self.heads = heads
        self.window = window
        self.qkv = local_enhancement(dim, copies=3)
        self.local_value = local_enhancement(dim)
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(_INITIAL_SCALE)))
        self.proj = ConvNormAct(dim, dim, 1, apply_act=False)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        qkv_BHWC = self.qkv(map_BCHW).permute(0, 2, 3, 1)
        query_BHWG4, key_BHWG4, value_BHWG4 = qkv_BHWC.unflatten(3, (-1, 3, GROUP_WIDTH)).unbind(4)
        scale_h11 = self.logit_scale.clamp(max=_LARGEST_LOG_SCALE).exp()
        value_NhTd = self._to_windows(value_BHWG4)
        attended_NhTd = functional.scaled_dot_product_attention(
            _normalised(self._to_windows(query_BHWG4), times=scale_h11),
            _normalised(self._to_windows(key_BHWG4)),
            value_NhTd,
            scale=1.0,
        )
        attended_BHWC = self._from_windows(attended_NhTd, *map_BCHW.shape[2:])
        local_BCHW = self.local_value(value_BHWG4.flatten(3).permute(0, 3, 1, 2))
        return self.proj(functional.relu(attended_BHWC.permute(0, 3, 1, 2) + local_BCHW))

    def _to_windows(self, map_BHWG4: Tensor) -> Tensor:
        _, height, width, groups, _ = map_BHWG4.shape
        side, rows, columns = self.window, height // self.window, width // self.window
        tiles = map_BHWG4.unflatten(2, (columns, side)).unflatten(1, (rows, side))
        tiles = tiles.unflatten(5, (self.heads, -1))  # B, rows, w, columns, w, h, G / h, 4
        return tiles.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(
            -1, self.heads, side * side, groups * GROUP_WIDTH // self.heads
        )

    def _from_windows(self, windows_NhTd: Tensor, height: int, width: int) -> Tensor:
        side, rows, columns = self.window, height // self.window, width // self.window
        tiles = windows_NhTd.unflatten(2, (side, side)).unflatten(0, (-1, rows, columns))
        # B, rows, columns, h, w, w, d
        return tiles.permute(0, 1, 4, 2, 5, 3, 6).reshape(
            -1, height, width, self.heads * windows_NhTd.shape[3]
        )


def _normalised(vectors_NhTd: Tensor, *, times: Tensor | float = 1.0) -> Tensor:
    """Each vector at length 1, times a factor. The lengths are found in at least float32: the
    square of a small number is 0 in float16."""
    exact_NhTd = full_precision(vectors_NhTd)
    squared_NhT1 = exact_NhTd.square().sum(dim=-1, keepdim=True).clamp(min=_SMALLEST_LENGTH**2)
    return (exact_NhTd * (squared_NhT1.rsqrt() * times)).to(vectors_NhTd.dtype)


class EnhancedMlp(nn.Module):
    """1x1 convolution, local enhancement, 1x1 convolution; [B, C, H, W] -> [B, C', H/s, W/s]."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int, *, stride: int) -> None:
        super().__init__()
        self.expand = ConvNormAct(dim, hidden_dim, 1)
        self.local = local_enhancement(hidden_dim, stride=stride, activate=True)
        self.project = ConvNormAct(hidden_dim, out_dim, 1, apply_act=False)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        return self.project(self.local(self.expand(map_BCHW)))


class LEViTBlock(nn.Module):
    """Attention at the resolution that comes in, then the MLP, which may halve it.

    No norm stands before or behind a branch: batch norm sits inside. A block that changes the
    channels has a convolutional skip path beside the MLP.

    Args:
        heads: 0 leaves the attention out.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        *,
        heads: int,
        window: int,
        mlp_ratio: int,
        stride: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.attention = EnhancedAttention(dim, heads, window) if heads else None
        self.mlp = EnhancedMlp(dim, mlp_ratio * out_dim, out_dim, stride=stride)
        self.skip = (
            nn.Identity()
            if dim == out_dim
            else nn.Sequential(
                local_enhancement(dim, stride=stride),
                ConvNormAct(dim, out_dim, 1, apply_act=False),
            )
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        if self.attention is not None:
            map_BCHW = map_BCHW + self.drop_path(self.attention(map_BCHW))
        return self.skip(map_BCHW) + self.drop_path(self.mlp(map_BCHW))


class LEViTBackbone(nn.Module):
    """Stem and three stages: [B, 3, H, W] -> [B, 4 * dim, h, w].

    Args:
        size: `LEVIT_S` or `LEVIT_L`.
        image_size: (height, width) in pixels; both multiples of 16 times the window.
        window: side of the attention windows, in positions of the map.
        mlp_ratio: hidden channels of a block's MLP for each of its output channels.
        drop_path: stochastic depth of the last block, growing linearly from 0 at the first.
        last_stride: 1 keeps the resolution in stage 3; 2 is the classifier.

    Attributes:
        dim: channels of the map.
        grid: (h, w) of the map.

    Raises:
        ValueError: an image that the windows do not tile.
    """

    published_units: ClassVar[Mapping[str, str]] = {
        name: name for name in ("stem", "stage1", "stage2", "stage3")
    }
    """Prefix of a tensor's name here -> prefix in the published weights."""

    def __init__(
        self,
        size: LEViTSize,
        image_size: tuple[int, int],
        *,
        window: int,
        mlp_ratio: int,
        drop_path: float,
        last_stride: int,
    ) -> None:
        super().__init__()
        _check_image_size(image_size, window)
        rates = [drop_path * i / (sum(_DEPTHS) - 1) for i in range(sum(_DEPTHS))]
        block = partial(LEViTBlock, window=window, mlp_ratio=mlp_ratio)
        stem, dim, end1, end2 = _STEM_WIDTH, size.dim, _DEPTHS[0], _DEPTHS[0] + _DEPTHS[1]
        self.stem = nn.Sequential(
            ConvNormAct(3, stem, 3, stride=2),
            ConvNormAct(stem, stem, 3),
            ConvNormAct(stem, 2 * stem, 3, stride=2),
            ConvNormAct(2 * stem, 2 * stem, 3),
        )
        self.stage1 = _stage(partial(block, heads=size.heads[0]), 2 * stem, dim, 2, rates[:end1])
        self.stage2 = _stage(partial(block, heads=size.heads[1]), dim, 2 * dim, 2, rates[end1:end2])
        self.stage3 = _stage(partial(block, heads=0), 2 * dim, 4 * dim, last_stride, rates[end2:])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        self.dim = 4 * dim
        rows, columns = (math.ceil(pixels / 16 / last_stride) for pixels in image_size)
        self.grid = (rows, columns)

    def trunk(self, images_BCHW: Tensor) -> Tensor:
        """What stage 3 takes: [B, 3, H, W] -> [B, 2 * dim, H / 16, W / 16].

        The maps are kept channels last in memory, in which the grouped convolutions are faster.
        """
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        return self.stage2(self.stage1(self.stem(images_BCHW)))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.stage3(self.trunk(images_BCHW))


def _stage(
    block: Callable[..., LEViTBlock], dim: int, out_dim: int, stride: int, drop_paths: list[float]
) -> nn.Sequential:
    """A block that changes channels and resolution, then blocks that keep both."""
    first = block(dim, out_dim, stride=stride, drop_path=drop_paths[0])
    others = (block(out_dim, out_dim, stride=1, drop_path=rate) for rate in drop_paths[1:])
    return nn.Sequential(first, *others)


def _check_image_size(image_size: tuple[int, int], window: int) -> None:
    unit = 16 * window
    if any(pixels < unit or pixels % unit for pixels in image_size):
        nearest = tuple(max(1, round(pixels / unit)) * unit for pixels in image_size)
        raise ValueError(
            f"image_size must be a multiple of 16 times window={window} in both directions, "
            f"at least {unit}x{unit}; got {tuple(image_size)}, the nearest is {nearest}"
        )
