"""Parts of the plain networks; see `benchmarks.plain_models`.

Shapes: B batch, C channels of a map, D token dim, Q queries, N keys, h w rows and columns of a map.
"""

import copy
from typing import Any, TypeVar

import torch
from timm.layers import Attention
from torch import Tensor, nn
from torch.nn import functional

Module = TypeVar("Module", bound=nn.Module)


class PlainVit(nn.Module):
    """Class token [B, D] and patch map [B, D, h, w] of a vision transformer."""

    def __init__(self, branch: Any) -> None:
        super().__init__()
        self.grid = branch.grid
        self.trunk = plain_copy(branch.trunk)
        self.side = plain_copy(branch.side_information) if branch.side_information else None

    def forward(self, images_BCHW: Tensor, cameras_B: Tensor | None) -> tuple[Tensor, Tensor]:
        tokens_BND = self.trunk._pos_embed(self.trunk.patch_embed(images_BCHW))
        if self.side is not None:
            tokens_BND = tokens_BND + self.side.coefficient * self.side.table_KC[cameras_B, None]
        tokens_BND = self.trunk.norm(self.trunk.blocks(self.trunk.norm_pre(tokens_BND)))
        return tokens_BND[:, 0], tokens_BND[:, 1:].transpose(1, 2).unflatten(2, self.grid)


def attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, dropout: nn.Module | None = None
) -> Tensor:
    """[B, Q, D], [B, N, D], [B, N, D] -> [B, Q, D]."""
    query, key, value = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)
    weights = weights if dropout is None else dropout(weights)
    return (weights @ value).transpose(1, 2).flatten(2)


def gem(unit: Any, map_BChw: Tensor) -> Tensor:
    """Generalised mean with the unit's exponent, [B, C, h, w] -> [B, C]."""
    powered_BChw = map_BChw.clamp(min=unit.eps).pow(unit.p)
    return functional.avg_pool2d(powered_BChw, map_BChw.shape[2:]).pow(1 / unit.p).flatten(1)


def plain_copy(module: Module) -> Module:
    """A copy with channels first, in which timm's attention is written out."""
    plain = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    for part in plain.modules():
        if isinstance(part, Attention):
            part.fused_attn = False
    return plain


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer with copies of these."""
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def require(value: object, written: object) -> None:
    """Refuse an option that the plain networks do not write out."""
    if value != written:
        raise ValueError(f"only the option {written!r} is written out plainly, got {value!r}")
