"""The training loss: identity cross entropy and batch-hard triplet, summed over a model's heads.

The triplet loss is that of Hermans et al., "In Defense of the Triplet Loss for Person
Re-Identification" (arXiv 1703.07737), put together from pytorch-metric-learning's parts: Euclidean
distances between features that are not normalised, for each anchor its farthest positive and its
nearest negative, `log(1 + exp(d_ap - d_an))` (soft margin) or `max(0, d_ap - d_an + margin)`, mean
over the anchors.

Shapes: B batch, C identities, d feature dim.
"""

import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn
from torch.nn import functional

from reid_models.output import LossTerm, ReidOutput
from reid_models.pooling import full_precision


class BatchHardTripletLoss(nn.Module):
    """Batch-hard triplet loss; anchors without a positive or a negative in the batch are left out.

    Args:
        margin: None for the soft margin, else the hinge's margin in the features' units.

    Memory: the B x B distances, and B x B index pairs while mining.
    """

    def __init__(self, margin: float | None = None) -> None:
        super().__init__()
        if margin is not None and margin < 0:
            raise ValueError(f"margin must be >= 0, or None for the soft margin, got {margin}")
        distance = LpDistance(normalize_embeddings=False)
        self.miner = BatchHardMiner(distance=distance)
        self.loss = TripletMarginLoss(
            margin=0.0 if margin is None else margin,
            smooth_loss=margin is None,
            distance=distance,
            reducer=MeanReducer(),
        )

    def forward(self, features_Bd: Tensor, labels_B: Tensor) -> Tensor:
        """[B, d] and [B] identities -> scalar; zero where no triplet can be formed.

        Runs in at least float32 under autocast too: the features are not normalised, and half
        precision would lose the small differences of large distances.
        """
        with torch.autocast(features_Bd.device.type, enabled=False):
            features_Bd = full_precision(features_Bd)
            return self.loss(features_Bd, labels_B, self.miner(features_Bd, labels_B))


class ReidLoss(nn.Module):
    """Weighted sum of the terms that a model's `loss_layout` asks for.

    Args:
        layout: the model's `loss_layout`.
        label_smoothing: share of the identity target spread evenly over all identities.
        margin: of the triplet loss; None for the soft margin.
        id_weight: factor on the identity terms, on top of each head's own.
        triplet_weight: factor on the triplet terms, on top of each head's own.

    Raises:
        ValueError: a setting out of range, or nothing left to optimise.
    """

    def __init__(
        self,
        layout: tuple[LossTerm, ...],
        *,
        label_smoothing: float = 0.1,
        margin: float | None = None,
        id_weight: float = 1.0,
        triplet_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        if id_weight < 0 or triplet_weight < 0:
            raise ValueError(
                f"loss weights must be >= 0, got id_weight={id_weight}, "
                f"triplet_weight={triplet_weight}"
            )
        self.label_smoothing = label_smoothing
        self.triplet = BatchHardTripletLoss(margin)
        self.id_weights = {t.head: w for t in layout if (w := t.id_weight * id_weight)}
        self.triplet_weights = {
            t.head: w for t in layout if (w := t.triplet_weight * triplet_weight)
        }
        if not self.id_weights and not self.triplet_weights:
            raise ValueError(f"every loss term has weight 0 in {layout}")

    def forward(self, output: ReidOutput, labels_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch.

        Args:
            output: of the model in training mode.
            labels_B: [B] int64 identity indices.

        Returns:
            The scalar to optimise, and its detached weighted parts "id" and "triplet", which sum
            to it.

        Raises:
            ValueError: the output lacks a head, as it does in eval mode.
        """
        missing = (self.id_weights.keys() - output.logits.keys()) | (
            self.triplet_weights.keys() - output.metric_features.keys()
        )
        if missing:
            raise ValueError(
                f"the model's output has no head {', '.join(sorted(missing))}; "
                "is the model in training mode?"
            )
        zero = output.embedding.new_zeros((), dtype=torch.float32)
        id_loss = sum(
            (
                w * self._id_loss(output.logits[head], labels_B)
                for head, w in self.id_weights.items()
            ),
            start=zero,
        )
        triplet_loss = sum(
            (
                w * self.triplet(output.metric_features[head], labels_B)
                for head, w in self.triplet_weights.items()
            ),
            start=zero,
        )
        parts = {"id": id_loss.detach(), "triplet": triplet_loss.detach()}
        return id_loss + triplet_loss, parts

    def _id_loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        return functional.cross_entropy(
            full_precision(logits_BC), labels_B, label_smoothing=self.label_smoothing
        )
