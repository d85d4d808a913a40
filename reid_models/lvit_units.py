"""The units of LViT-Net: local encoder, LMSF and DFCF.

Reconstructed: `reid_models.lvit_net` tells what is known of the published network and where each
of these was taken from.

Shapes: B batch, H W image size, C channels of a stage, D token dim, h w rows and columns of the
grid at stride 16, S scales, L local tokens (h * w, or 1 + h * w with a mean token in front), G
global tokens with the class token in front, N tokens of one side, M heads, d dim of a head.
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import torch
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 4
"""Stages of the local encoder, at strides 4, 8, 16 and 32; LMSF gathers them at stride 16."""


class LocalBlock(nn.Module):
    """Depth-wise 3x3, GroupNorm, point-wise, GELU, with a residual path; [B, C, H, W] -> same."""

    def __init__(self, channels: int, *, groups: int, drop_path: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.GroupNorm(groups, channels),
            nn.Conv2d(channels, channels, 1),
            nn.GELU(),
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, map_BCHW: Tensor) -> Tensor:
        return map_BCHW + self.drop_path(self.layers(map_BCHW))


class LocalEncoder(nn.Module):
    """The local branch: a hierarchy of four convolutional stages, each half the size of the last.

    No layer keeps statistics of the batch.

    Args:
        widths: channels of the stages.
        blocks: blocks of each stage.
        groups: of every GroupNorm.
        drop_path: stochastic depth of the last block, growing linearly from 0 at the first.
    """

    def __init__(
        self, widths: Sequence[int], *, blocks: int, groups: int, drop_path: float
    ) -> None:
        super().__init__()
        entries: list[list[nn.Module]] = [
            [nn.Conv2d(3, widths[0], 4, stride=4), nn.GroupNorm(groups, widths[0])]
        ]
        entries += [
            [nn.GroupNorm(groups, narrow), nn.Conv2d(narrow, wide, 2, stride=2)]
            for narrow, wide in pairwise(widths)
        ]
        rates = torch.linspace(0, drop_path, blocks * len(widths), device="cpu").tolist()
        self.stages = nn.ModuleList(
            nn.Sequential(
                *entry,
                *(
                    LocalBlock(width, groups=groups, drop_path=rates[stage * blocks + block])
                    for block in range(blocks)
                ),
            )
            for stage, (entry, width) in enumerate(zip(entries, widths, strict=True))
        )

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> the four stages' maps, [B, C, H / 4, W / 4] to [B, C, H / 32, W / 32]."""
        map_BCHW, maps = images_BCHW, []
        for stage in self.stages:
            map_BCHW = stage(map_BCHW)
            maps.append(map_BCHW)
        return maps


class LocalMultiScaleFusion(nn.Module):
    """LMSF: the four stages' maps to one map [B, D, h, w].

    All are brought to the grid at stride 16 and to D channels; a softmax over the scales, one for
    every channel, weighs them; depth-wise convolutions of several sizes refine what comes of it.
    """

    def __init__(
        self,
        widths: Sequence[int],
        dim: int,
        *,
        kernels: Sequence[int],
        reduction: int,
        groups: int,
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, dim, 1, bias=False), nn.GroupNorm(groups, dim))
            for width in widths
        )
        self.scale_attention = Mlp(dim, dim // reduction, len(widths) * dim)
        self.refinements = nn.ModuleList(
            nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim) for kernel in kernels
        )
        self.mix = nn.Sequential(nn.GroupNorm(groups, dim), nn.GELU(), nn.Conv2d(dim, dim, 1))

    def align(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps of `LocalEncoder` -> as many of [B, D, h, w]."""
        stride4, stride8, stride16, stride32 = maps
        at_stride16 = (
            functional.avg_pool2d(stride4, 4),
            functional.avg_pool2d(stride8, 2),
            stride16,
            functional.interpolate(stride32, scale_factor=2, mode="bilinear", align_corners=False),
        )
        return [
            project(map_BChw)
            for project, map_BChw in zip(self.projections, at_stride16, strict=True)
        ]

    def fuse(self, scales: Sequence[Tensor]) -> Tensor:
        """Maps of `align` -> [B, D, h, w]."""
        scales_BSDhw = torch.stack(list(scales), dim=1)
        pooled_BD = scales_BSDhw.sum(dim=1).mean(dim=(-2, -1))
        weights_BSD = self.scale_attention(pooled_BD).unflatten(1, (len(scales), -1)).softmax(dim=1)
        mixed_BDhw = (weights_BSD[..., None, None] * scales_BSDhw).sum(dim=1)
        refined_BDhw = torch.stack([refine(mixed_BDhw) for refine in self.refinements]).sum(dim=0)
        return mixed_BDhw + self.mix(refined_BDhw)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.fuse(self.align(maps))


class CrossFusionSide(nn.Module):
    """One side of a cross fusion: what it offers to the other, and how it takes what it is offered.

    Two learned scalars weigh either residual sum: the tokens and what is added to them.
    """

    def __init__(self, dim: int, *, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, mlp_ratio * dim, drop=(0.0, dropout))
        self.residual_scales = nn.Parameter(torch.ones(4))

    def offer(self, normed_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Normed tokens of this side -> keys and values for the other, [B, M, N, d] each."""
        key_BND, value_BND = self.key_value(normed_BND).chunk(2, dim=-1)
        return self._split(key_BND), self._split(value_BND)

    def take(
        self, tokens_BND: Tensor, normed_BND: Tensor, offered: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Tokens of this side, as they are and normed, and the other's `offer` -> new tokens."""
        attended_BMNd = functional.scaled_dot_product_attention(
            self._split(self.query(normed_BND)),
            *offered,
            dropout_p=self.dropout if self.training else 0.0,
        )
        attended_BND = self.proj(attended_BMNd.transpose(1, 2).flatten(2))
        attended_BND = functional.dropout(attended_BND, self.dropout, self.training)
        keep, attend, keep_again, transform = self.residual_scales.unbind()
        tokens_BND = keep * tokens_BND + attend * attended_BND
        return keep_again * tokens_BND + transform * self.mlp(self.norm_mlp(tokens_BND))

    def _split(self, tokens_BND: Tensor) -> Tensor:
        return tokens_BND.unflatten(2, (self.heads, -1)).transpose(1, 2)


class CrossFusionBlock(nn.Module):
    """One iteration of DFCF: both sides attend to each other's tokens as these came in."""

    def __init__(self, dim: int, *, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        new_side = partial(CrossFusionSide, dim, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout)
        # not "global" alone: torch.export writes code with these names, and that is a keyword
        self.local_side, self.global_side = new_side(), new_side()

    def forward(
        self,
        local_BLD: Tensor,
        global_BGD: Tensor,
        *,
        local_count: int | None = None,
        global_count: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Tokens of both sides -> their new tokens, the first `*_count` of a side or all."""
        normed_local_BLD = self.local_side.norm(local_BLD)
        normed_global_BGD = self.global_side.norm(global_BGD)
        new_local_BND = self.local_side.take(
            local_BLD[:, :local_count],
            normed_local_BLD[:, :local_count],
            self.global_side.offer(normed_global_BGD),
        )
        new_global_BND = self.global_side.take(
            global_BGD[:, :global_count],
            normed_global_BGD[:, :global_count],
            self.local_side.offer(normed_local_BLD),
        )
        return new_local_BND, new_global_BND


class DualFeatureCrossFusion(nn.Module):
    """DFCF: local and global tokens refine each other, again and again.

    Args:
        dim: D.
        cells: h * w.
        iterations: how often; 0 leaves both sides as they are.
        shared: whether all iterations are one block, else each has its own.
        class_tokens_only: whether only the class token of either side is refined, the local side's
            being the mean of its tokens; the other tokens stay as they came in.
        heads, mlp_ratio, dropout: of the blocks.
    """

    def __init__(
        self,
        dim: int,
        cells: int,
        *,
        iterations: int,
        shared: bool,
        class_tokens_only: bool,
        heads: int,
        mlp_ratio: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.iterations = iterations
        self.class_tokens_only = class_tokens_only
        self.position_1ND = nn.Parameter(torch.zeros(1, cells, dim)) if iterations else None
        self.blocks = nn.ModuleList(
            CrossFusionBlock(dim, heads=heads, mlp_ratio=mlp_ratio, dropout=dropout)
            for _ in range(min(iterations, 1) if shared else iterations)
        )

    def local_tokens(self, map_BDhw: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, h * w, D], row-major, with their places where iterations follow."""
        tokens_BLD = map_BDhw.flatten(2).transpose(1, 2)
        return tokens_BLD if self.position_1ND is None else tokens_BLD + self.position_1ND

    def iterate(self, number: int, local_BLD: Tensor, global_BGD: Tensor) -> tuple[Tensor, Tensor]:
        """Iteration `number`, counted from 0; the last gives only the first of the global tokens,
        the only one that is read behind it."""
        block = self.blocks[number % len(self.blocks)]
        if self.class_tokens_only:
            first_local_B1D, first_global_B1D = block(
                local_BLD, global_BGD, local_count=1, global_count=1
            )
            return (
                torch.cat([first_local_B1D, local_BLD[:, 1:]], dim=1),
                torch.cat([first_global_B1D, global_BGD[:, 1:]], dim=1),
            )
        is_last = number == self.iterations - 1
        return block(local_BLD, global_BGD, global_count=1 if is_last else None)

    def forward(self, map_BDhw: Tensor, global_BGD: Tensor) -> tuple[Tensor, Tensor]:
        """Local map and global tokens -> summaries of the local and of the global side, [B, D]."""
        local_BLD = self.local_tokens(map_BDhw)
        if self.class_tokens_only:
            local_BLD = torch.cat([local_BLD.mean(dim=1, keepdim=True), local_BLD], dim=1)
        for number in range(self.iterations):
            local_BLD, global_BGD = self.iterate(number, local_BLD, global_BGD)
        local_BD = local_BLD[:, 0] if self.class_tokens_only else local_BLD.mean(dim=1)
        return local_BD, global_BGD[:, 0]
