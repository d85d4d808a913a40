"""Losses on the distances between the features of a batch, of one worker or of all together.

Triplet: batch-hard, of Hermans et al., "In Defense of the Triplet Loss for Person
Re-Identification" (arXiv 1703.07737): for each anchor its farthest positive and its nearest
negative by Euclidean distance, `log(1 + exp(d_ap - d_an))` (soft margin) or
`max(0, d_ap - d_an + margin)`, mean over the anchors.

Center: Wen et al., "A Discriminative Feature Learning Approach for Deep Face Recognition", ECCV
2016.

Nothing here asks the device for a value, so that a GPU is never waited for.

Shapes: B batch, A batches of all workers together, C identities, d feature dim.
"""

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from reid_models.pooling import full_precision


class BatchHardTripletLoss(nn.Module):
    """Batch-hard triplet loss; anchors without a negative in the batch are left out.

    Args:
        margin: None for the soft margin, else the hinge's margin in the features' units.
        normalize: whether the features are brought to unit length first.
        across_workers: whether the batch is that of all distributed workers together, else each
            worker's own. Every worker then has the whole loss, so that the mean of the workers'
            gradients is the gradient of one worker with the whole batch; all must call it.
        lone_anchors: whether an anchor that is its identity's only image is its own positive, at
            distance zero, as in the code of LA-TF++, whose batches are not drawn by identity; else
            it is left out.

    Memory: the B x B distances (A x A across workers), which carry no gradient.
    """

    def __init__(
        self,
        margin: float | None = None,
        *,
        normalize: bool = False,
        across_workers: bool = False,
        lone_anchors: bool = False,
    ) -> None:
        super().__init__()
        if margin is not None and margin < 0:
            raise ValueError(f"margin must be >= 0, or None for the soft margin, got {margin}")
        self.margin = margin
        self.normalize = normalize
        self.across_workers = across_workers
        self.lone_anchors = lone_anchors

    def forward(self, features_Bd: Tensor, labels_B: Tensor) -> Tensor:
        """[B, d] and [B] identities -> scalar; zero where no triplet can be formed.

        Runs in at least float32 under autocast too: half precision would lose the small
        differences of large distances.
        """
        with torch.autocast(features_Bd.device.type, enabled=False):
            features_Bd = full_precision(features_Bd)
            if self.normalize:
                features_Bd = functional.normalize(features_Bd)
            if self.across_workers:
                features_Bd, labels_B = of_all_workers(features_Bd), of_all_workers(labels_B)
            positive_A, negative_A, taken_A = self._mine(features_Bd, labels_B)
            gap_A = _distances(features_Bd, features_Bd[positive_A]) - _distances(
                features_Bd, features_Bd[negative_A]
            )
            losses_A = (
                functional.softplus(gap_A)
                if self.margin is None
                else functional.relu(gap_A + self.margin)
            )
            return (losses_A * taken_A).sum() / taken_A.sum().clamp(min=1)

    @torch.no_grad()
    def _mine(self, features_Ad: Tensor, labels_A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each anchor's farthest positive, nearest negative, and whether it takes part."""
        # by differences, as matrix products would lose the small distances of long features
        distances_AA = torch.cdist(
            features_Ad, features_Ad, compute_mode="donot_use_mm_for_euclid_dist"
        )
        same_AA = labels_A[:, None] == labels_A
        # an anchor is among its own positives, where any other is at least as far
        positive_A = distances_AA.masked_fill(~same_AA, -1.0).argmax(dim=1)
        negative_A = distances_AA.masked_fill(same_AA, torch.inf).argmin(dim=1)
        own_A = same_AA.sum(dim=1)
        fewest = 1 if self.lone_anchors else 2
        return positive_A, negative_A, (own_A >= fewest) & (own_A < len(labels_A))


def _distances(one_Ad: Tensor, other_Ad: Tensor) -> Tensor:
    """[A, d] and [A, d] -> [A], with gradient zero where both are the same."""
    return (one_Ad - other_Ad).square().sum(dim=1).clamp(min=1e-12).sqrt()


class CenterLoss(nn.Module):
    """`|f - c|^2 / 2` between features and their identities' centers, mean over the batch.

    A center is no parameter: after each batch in training mode it moves towards its features,
    c += rate * sum(f - c) / (1 + n) over its n images in the batch of all workers. It starts at
    the origin. The centers are this module's state, and every worker holds the same.
    """

    centers_Cd: Tensor

    def __init__(self, num_classes: int, *, rate: float = 0.5) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("centers_Cd", torch.empty(num_classes, 0))  # d is the first batch's

    def forward(self, features_Bd: Tensor, labels_B: Tensor) -> Tensor:
        """[B, d] and [B] identities -> scalar, in float32 under autocast too."""
        with torch.autocast(features_Bd.device.type, enabled=False):
            features_Bd = full_precision(features_Bd)
            if self.centers_Cd.shape[1] == 0:
                self.centers_Cd = features_Bd.new_zeros(len(self.centers_Cd), features_Bd.shape[1])
            self.centers_Cd = self.centers_Cd.to(features_Bd)  # those of a checkpoint lie elsewhere
            away_Bd = features_Bd - self.centers_Cd[labels_B]
            if self.training:
                self._move(of_all_workers(away_Bd.detach()), of_all_workers(labels_B))
            return away_Bd.square().sum(dim=1).mean() / 2

    def _move(self, away_Ad: Tensor, labels_A: Tensor) -> None:
        # a product instead of index_add, whose order of summation varies on a GPU
        own_AC = functional.one_hot(labels_A, len(self.centers_Cd)).to(away_Ad.dtype)
        counts_C1 = own_AC.sum(dim=0)[:, None]
        self.centers_Cd += self.rate * (own_AC.T @ away_Ad) / (1 + counts_C1)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}centers_Cd")
        if saved is not None and len(saved) == len(self.centers_Cd):
            self.centers_Cd = self.centers_Cd.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)


def of_all_workers(rows_B: Tensor) -> Tensor:
    """The rows [B, ...] of all distributed workers, [A, ...] in rank order, with gradient; the
    tensor itself where there is one worker. All must call it, with as many rows each."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows_B
    if distributed.get_world_size() == 1:
        return rows_B
    gathered_A: Tensor = _GatherRows.apply(rows_B)
    return gathered_A


class _GatherRows(torch.autograd.Function):
    """All-gather with gradient. torch has such functions under names that change with its version;
    these two collectives do not."""

    @staticmethod
    def forward(ctx: Any, rows_B: Tensor) -> Tensor:
        rows_B = rows_B.contiguous()
        parts = [torch.empty_like(rows_B) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows_B)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient_A: Tensor) -> Tensor:
        gradient_A = gradient_A.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient_A)
        return gradient_A.chunk(distributed.get_world_size())[distributed.get_rank()]
