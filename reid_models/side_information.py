"""Camera side information: a learned vector a training camera, added to a transformer's tokens.

Source: He et al., "TransReID: Transformer-based Object Re-Identification", ICCV 2021
(arXiv 2102.04378). The rule for unknown cameras is ours.

Shapes: B batch, K cameras of the training set, C token dim.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional


class SideInformation(nn.Module):
    """Looks up `coefficient * table[camera]`.

    An unknown camera (index -1) gets the mean of the table's rows: the expected offset of a camera
    drawn from the training set, so that a new site needs no retraining and never an index error.
    """

    def __init__(self, camera_count: int, dim: int, *, coefficient: float) -> None:
        super().__init__()
        if camera_count < 2:
            raise ValueError(f"side information needs at least 2 cameras, got {camera_count}")
        self.coefficient = coefficient
        self.table_KC = nn.Parameter(torch.empty(camera_count, dim))
        nn.init.trunc_normal_(self.table_KC, std=0.02)

    def forward(self, cameras_B: Tensor | None) -> Tensor:
        """[B] int64 camera indices -> [B, 1, C]; None (all unknown) -> [1, 1, C]."""
        unknown_1C = self.table_KC.mean(dim=0, keepdim=True)
        if cameras_B is None:
            return self.coefficient * unknown_1C.unsqueeze(1)
        known_BC = functional.embedding(cameras_B.clamp(min=0), self.table_KC)
        rows_BC = torch.where((cameras_B >= 0).unsqueeze(1), known_BC, unknown_1C)
        return self.coefficient * rows_BC.unsqueeze(1)
