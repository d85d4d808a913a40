"""The units of FusionReID's Dual-attention Mutual Fusion: LRU, SEU, MFU and HTM.

Source: Wang et al., "Unity is Strength: Unifying Convolutional and Transformeral Features for
Better Person Re-Identification" (FusionReID), arXiv 2412.17239, with the details of the published
code: a 1x1 depth-wise convolution in the LRU, keys but not values normalised in the MFU.

Shapes: B batch, C channels of a branch, D fusion dim, h w rows and columns of a map, N tokens of
one branch (N = h * w; the two branches need not have equally many).
"""

from typing import Literal, NamedTuple

import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional

SeuSharing = Literal["shared", "separate"]
_MLP_RATIO = 4


class BranchPair(NamedTuple):
    """One tensor of each branch."""

    cnn: Tensor
    transformer: Tensor


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
        query_B1D = self.query(self.norm_query(summary_BD)).unsqueeze(1)
        attended_BHND = functional.scaled_dot_product_attention(
            self._by_head(query_B1D),
            self._by_head(self.key(self.norm_key(others_BND))),
            self._by_head(self.value(others_BND)),
        )
        attended_BD = attended_BHND.flatten(1)  # one query: [B, heads, 1, D / heads]
        summary_BD = summary_BD + self.proj(attended_BD)
        return summary_BD + self.mlp(self.norm_mlp(summary_BD))

    def _by_head(self, tokens_BND: Tensor) -> Tensor:
        return tokens_BND.unflatten(2, (self.heads, -1)).transpose(1, 2)


class HeterogeneousTransmissionModule(nn.Module):
    """HTM: each branch encodes [its summary; its refined tokens], then the summaries cross over.

    Only the summaries leave the module: every HTM starts again from the LRU's tokens.
    """

    def __init__(self, dim: int, heads: int, *, seu_sharing: SeuSharing) -> None:
        super().__init__()
        names = ("shared",) if seu_sharing == "shared" else BranchPair._fields
        self.seu = nn.ModuleDict({name: EncodingUnit(dim, heads) for name in names})
        self.mfu_cnn = MutualFusionUnit(dim, heads)
        self.mfu_transformer = MutualFusionUnit(dim, heads)

    def forward(self, summaries: BranchPair, tokens: BranchPair) -> BranchPair:
        """Summaries [B, D] and tokens [B, N, D] of both branches -> new summaries [B, D]."""
        cnn_BND = self._encode("cnn", summaries.cnn, tokens.cnn)
        transformer_BND = self._encode("transformer", summaries.transformer, tokens.transformer)
        return BranchPair(
            cnn=self.mfu_cnn(cnn_BND[:, 0], transformer_BND[:, 1:]),
            transformer=self.mfu_transformer(transformer_BND[:, 0], cnn_BND[:, 1:]),
        )

    def _encode(self, branch: str, summary_BD: Tensor, tokens_BND: Tensor) -> Tensor:
        unit = self.seu["shared" if "shared" in self.seu else branch]
        return unit(torch.cat([summary_BD.unsqueeze(1), tokens_BND], dim=1))
