"""The units of FusionReID's Dual-attention Mutual Fusion: LRU, SEU, MFU and HTM.

Source: Wang et al., "Unity is Strength: Unifying Convolutional and Transformeral Features for
Better Person Re-Identification" (FusionReID), arXiv 2412.17239, with the details of the published
code: a 1x1 depth-wise convolution in the LRU, keys but not values normalised in the MFU.

Shapes: B batch, C channels of a branch, D fusion dim, h w rows and columns of a map, N tokens of
one branch (N = h * w; the two branches need not have equally many).
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

from reid_models.fusion_plan import BRANCHES, Branch, HtmMode

Sharing = Literal["shared", "separate"]
"""One unit for both branches, or one for each."""

PerBranch = Mapping[Branch, Tensor]

_MLP_RATIO = 4
_OTHER: Mapping[Branch, Branch] = {"cnn": "transformer", "transformer": "cnn"}


class LocalRefinementUnit(nn.Sequential):
    """Brings a branch's map to the fusion dim: [B, C, h, w] -> [B, D, h, w].

    A depth-wise then a point-wise convolution, each with batch norm and a one-slope PReLU. At the
    published kernel of 1 the depth-wise convolution only scales and shifts each channel.
    """

    def __init__(self, in_channels: int, dim: int, *, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, in_channels, kernel, padding=kernel // 2, groups=in_channels),
            nn.BatchNorm2d(in_channels),
            nn.PReLU(),
            nn.Conv2d(in_channels, dim, kernel_size=1),
            nn.BatchNorm2d(dim),
            nn.PReLU(),
        )


class EncodingUnit(nn.Module):
    """SEU: one pre-norm transformer block and a closing layer norm, [B, 1+N, D] -> the same."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.block = Block(
            dim, heads, mlp_ratio=_MLP_RATIO, qkv_bias=False, norm_layer=nn.LayerNorm
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        return self.norm(self.block(tokens_BND))

    def first(self, tokens_BND: Tensor) -> Tensor:
        """The first token of `forward`, [B, D], without the work on the others' own outputs."""
        block, attention = self.block, self.block.attn
        first_BD, normed_BND = tokens_BND[:, 0], block.norm1(tokens_BND)
        weight_query, weight_key_value = attention.qkv.weight.tensor_split([first_BD.shape[1]])
        key_BND, value_BND = functional.linear(normed_BND, weight_key_value).chunk(2, dim=-1)
        query_B1D = functional.linear(normed_BND[:, :1], weight_query)
        attended_BD = _attend(query_B1D, key_BND, value_BND, attention.num_heads)
        first_BD = first_BD + attention.proj(attended_BD)
        return self.norm(first_BD + block.mlp(block.norm2(first_BD)))


class MutualFusionUnit(nn.Module):
    """MFU: one branch's summary attends to the other branch's tokens, then passes an MLP.

    Keys are layer-normalised, values are not, and there is no closing norm: as published.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_query = nn.LayerNorm(dim)
        self.norm_key = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden_features=_MLP_RATIO * dim)

    def forward(self, summary_BD: Tensor, others_BND: Tensor) -> Tensor:
        """Summary [B, D] of this branch, tokens [B, N, D] of the other -> new summary [B, D]."""
        attended_BD = _attend(
            self.query(self.norm_query(summary_BD)).unsqueeze(1),
            self.key(self.norm_key(others_BND)),
            self.value(others_BND),
            self.heads,
        )
        summary_BD = summary_BD + self.proj(attended_BD)
        return summary_BD + self.mlp(self.norm_mlp(summary_BD))


class HeterogeneousTransmissionModule(nn.Module):
    """HTM: each branch encodes [its summary; its refined tokens], then the summaries cross over.

    Only the summaries leave the module: every HTM starts again from the LRU's tokens. The modes
    other than "encode_fuse" leave one of the two steps out or turn them round; a step that is left
    out has no units.
    """

    def __init__(
        self, dim: int, heads: int, *, mode: HtmMode, seu_sharing: Sharing, mfu_sharing: Sharing
    ) -> None:
        super().__init__()
        self.mode = mode
        if "encode" in mode:
            self.seu = _units(lambda: EncodingUnit(dim, heads), seu_sharing)
        if "fuse" in mode:
            self.mfu = _units(lambda: MutualFusionUnit(dim, heads), mfu_sharing)

    def forward(
        self, summaries: PerBranch, tokens: PerBranch, wanted: Collection[Branch] = BRANCHES
    ) -> PerBranch:
        """Summaries [B, D] and tokens [B, N, D] -> the new summaries of the branches `wanted`.

        Only what those need is read, see `fusion_plan`.
        """
        match self.mode:
            case "encode_fuse":
                return self._fuse(*self._encode(summaries, tokens, wanted), wanted)
            case "encode":
                return self._encode_summaries(summaries, tokens, wanted)
            case "fuse":
                return self._fuse(summaries, tokens, wanted)
            case "fuse_encode":
                fused = self._fuse(summaries, tokens, wanted)
                return self._encode_summaries(fused, tokens, wanted)

    def _fuse(
        self, summaries: PerBranch, tokens: PerBranch, wanted: Collection[Branch]
    ) -> PerBranch:
        return {
            branch: _unit(self.mfu, branch)(summaries[branch], tokens[_OTHER[branch]])
            for branch in wanted
        }

    def _encode_summaries(
        self, summaries: PerBranch, tokens: PerBranch, wanted: Collection[Branch]
    ) -> PerBranch:
        return {
            branch: _unit(self.seu, branch).first(_sequence(summaries[branch], tokens[branch]))
            for branch in wanted
        }

    def _encode(
        self, summaries: PerBranch, tokens: PerBranch, wanted: Collection[Branch]
    ) -> tuple[PerBranch, PerBranch]:
        """Encoded summaries of the branches `wanted`, and the encoded tokens they will read."""
        encoded_summaries: dict[Branch, Tensor] = {}
        encoded_tokens: dict[Branch, Tensor] = {}
        for branch in BRANCHES:
            unit = _unit(self.seu, branch)
            sequence_BND = _sequence(summaries[branch], tokens[branch])
            if _OTHER[branch] in wanted:
                sequence_BND = unit(sequence_BND)
                encoded_summaries[branch] = sequence_BND[:, 0]
                encoded_tokens[branch] = sequence_BND[:, 1:]
            else:
                encoded_summaries[branch] = unit.first(sequence_BND)
        return encoded_summaries, encoded_tokens


def _units(build: Callable[[], nn.Module], sharing: Sharing) -> nn.ModuleDict:
    names = ("shared",) if sharing == "shared" else BRANCHES
    return nn.ModuleDict({name: build() for name in names})


def _unit(units: nn.ModuleDict, branch: Branch) -> Any:
    return units["shared" if "shared" in units else branch]


def _sequence(summary_BD: Tensor, tokens_BND: Tensor) -> Tensor:
    return torch.cat([summary_BD.unsqueeze(1), tokens_BND], dim=1)


def _attend(query_B1D: Tensor, key_BND: Tensor, value_BND: Tensor, heads: int) -> Tensor:
    """Multi-head attention of one query, -> [B, D]."""
    query, key, value = (
        tokens_BND.unflatten(2, (heads, -1)).transpose(1, 2)
        for tokens_BND in (query_B1D, key_BND, value_BND)
    )
    return functional.scaled_dot_product_attention(query, key, value).flatten(1)
