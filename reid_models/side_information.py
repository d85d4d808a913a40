"""Side information: a learned vector a camera, a view or a pair of both, added to the tokens.

Source: He et al., "TransReID: Transformer-based Object Re-Identification", ICCV 2021
(arXiv 2102.04378). The rule for unknown cameras and views is ours.

Shapes: B batch, K rows of the table (camera-major pairs of camera and view), C token dim.
"""

import torch
from torch import Tensor, nn


class SideInformation(nn.Module):
    """Looks up `coefficient * table[camera, view]`.

    What is unknown (index -1) is averaged over: a known camera with an unknown view gets the mean
    of that camera's rows, an unknown camera with a known view the mean of that view's, and with
    both unknown it is the mean of the whole table. That is the expected offset of an image drawn
    from the training set, so that a new site needs no retraining and never an index error.

    Args:
        camera_count: cameras of the training set; below 2 the table tells only views apart.
        dim: C.
        coefficient: factor on the learned vectors.
        view_count: views of the training set; below 2 the table tells only cameras apart.
    """

    def __init__(
        self, camera_count: int, dim: int, *, coefficient: float, view_count: int = 0
    ) -> None:
        super().__init__()
        if camera_count < 2 and view_count < 2:
            raise ValueError(
                "side information needs at least 2 cameras or 2 views, "
                f"got {camera_count} and {view_count}"
            )
        self.coefficient = coefficient
        self.cameras_and_views = (max(camera_count, 1), max(view_count, 1))
        cameras, views = self.cameras_and_views
        self.table_KC = nn.Parameter(torch.empty(cameras * views, dim))
        nn.init.trunc_normal_(self.table_KC, std=0.02)

    def forward(self, cameras_B: Tensor | None, views_B: Tensor | None = None) -> Tensor:
        """[B] int64 camera and view indices -> [B, 1, C]; both None (all unknown) -> [1, 1, C]."""
        table = self.table_KC.unflatten(0, self.cameras_and_views)
        # The means go in front: there an index that is too large still fails, on a GPU too.
        table = torch.cat([table.mean(dim=0, keepdim=True), table], dim=0)
        table = torch.cat([table.mean(dim=1, keepdim=True), table], dim=1)
        rows_BC = table[self._row(cameras_B), self._row(views_B)]
        return self.coefficient * rows_BC.unsqueeze(1)

    def _row(self, indices_B: Tensor | None) -> Tensor:
        if indices_B is None:
            return torch.zeros(1, dtype=torch.int64, device=self.table_KC.device)
        return (indices_B + 1).clamp(min=0)


def check_indices(indices_B: Tensor, *, what: str, count: int, batch: int) -> None:
    """Accept [batch] int64 indices of which each is -1 (unknown) or lies in 0 .. count - 1.

    The values are read only on the CPU, so that a GPU is never waited for; there an index that is
    too large fails in the table lookup itself.

    Raises:
        ValueError: another type or shape, or an index out of range.
    """
    if indices_B.dtype != torch.int64 or indices_B.shape != (batch,):
        raise ValueError(
            f"{what}s must be int64 of shape [{batch}], "
            f"got {indices_B.dtype} of shape {list(indices_B.shape)}"
        )
    if indices_B.device.type != "cpu" or torch.compiler.is_compiling() or batch == 0:
        return
    low, high = int(indices_B.min()), int(indices_B.max())
    if low < -1 or high >= count:
        raise ValueError(
            f"{what} indices must lie in 0..{count - 1}, or be -1 for an unknown {what}; "
            f"got {low}..{high}"
        )
