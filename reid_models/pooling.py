"""Pooling of feature maps.

Shapes: B batch, C channels, h w rows and columns of a feature map.
"""

import torch
from torch import Tensor, nn


def full_precision(values: Tensor) -> Tensor:
    """The tensor in float32 where it is narrower; float32 and float64 stay as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class GeM(nn.Module):
    """Generalised mean over a map, `mean(clamp(x, eps)^p)^(1/p)` with one learned p.

    p = 1 is average pooling, p -> infinity max pooling. Source: Radenovic et al., "Fine-tuning CNN
    Image Retrieval with No Human Annotation", TPAMI 2019 (arXiv 1711.02512).
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))
        self.eps = eps

    def forward(self, map_BChw: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C] in at least float32: eps^p underflows in float16."""
        map_BChw = full_precision(map_BChw)
        return map_BChw.clamp(min=self.eps).pow(self.p).mean(dim=(-2, -1)).pow(1.0 / self.p)
