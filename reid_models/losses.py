"""The training loss: an identity term and metric terms, summed over a model's heads.

Identity: cross entropy with label smoothing, of the logits as they are or of a margin product of
cosines (`reid_models.heads.MarginProduct`). Metric: `reid_models.metric_losses`.

Shapes: B batch, C identities.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid_models.heads import Margin, MarginProduct, use_cosine_logits
from reid_models.metric_losses import BatchHardTripletLoss, CenterLoss
from reid_models.model import ReidModel
from reid_models.output import LossTerm, ReidOutput
from reid_models.pooling import full_precision

IdLoss = Literal["softmax", Margin]


class ReidLoss(nn.Module):
    """Weighted sum of the terms that a model's `loss_layout` asks for.

    Args:
        layout: the model's `loss_layout`.
        label_smoothing: share of the identity target spread evenly over all identities.
        margin: of the triplet loss; None for the soft margin.
        id_weight: factor on the identity terms, on top of each head's own.
        triplet_weight: factor on the triplet terms, on top of each head's own.
        normalize_triplet: whether triplets compare features of unit length.
        across_workers: whether triplets are formed in the batch of all workers together.
        lone_anchors: whether an identity's only image in the batch forms a triplet with itself.
        id_loss: `softmax`, or the margin product that the heads' cosines go through first.
        id_margin: margin of the product; None for its paper's.
        id_scale: scale of the product; None for its paper's.
        center_weight: factor on a center loss beside every triplet term, on top of the head's own
            weight there; 0 for none.
        num_classes: C, which only the center loss needs.

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
        normalize_triplet: bool = False,
        across_workers: bool = False,
        lone_anchors: bool = False,
        id_loss: IdLoss = "softmax",
        id_margin: float | None = None,
        id_scale: float | None = None,
        center_weight: float = 0.0,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
        if min(id_weight, triplet_weight, center_weight) < 0:
            raise ValueError(
                f"loss weights must be >= 0, got id_weight={id_weight}, "
                f"triplet_weight={triplet_weight}, center_weight={center_weight}"
            )
        if center_weight and num_classes < 1:
            raise ValueError(f"a center loss needs num_classes, got {num_classes}")
        self.label_smoothing = label_smoothing
        self.product = _margin_product(id_loss, id_margin, id_scale)
        self.triplet = BatchHardTripletLoss(
            margin,
            normalize=normalize_triplet,
            across_workers=across_workers,
            lone_anchors=lone_anchors,
        )
        self.id_weights = _factors({t.head: t.id_weight for t in layout}, id_weight)
        metric_weights = {t.head: t.triplet_weight for t in layout}
        self.triplet_weights = _factors(metric_weights, triplet_weight)
        self.center_weights = _factors(metric_weights, center_weight)
        self.centers = nn.ModuleDict({h: CenterLoss(num_classes) for h in self.center_weights})
        if not self.id_weights and not self.triplet_weights:
            raise ValueError(f"every loss term has weight 0 in {layout}")

    def forward(self, output: ReidOutput, labels_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch.

        Args:
            output: of the model in training mode.
            labels_B: [B] int64 identity indices.

        Returns:
            The scalar to optimise, and its detached weighted parts "id", "triplet" and, with
            centers, "center", which sum to it.

        Raises:
            ValueError: the output lacks a head, as it does in eval mode; or a margin product got
                logits that are no cosines, which is looked at on the CPU only.
        """
        logits, features = output.logits, output.metric_features
        missing = (self.id_weights.keys() - logits.keys()) | (
            (self.triplet_weights.keys() | self.center_weights.keys()) - features.keys()
        )
        if missing:
            raise ValueError(
                f"the model's output has no head {', '.join(sorted(missing))}; "
                "is the model in training mode?"
            )
        zero = output.embedding.new_zeros((), dtype=torch.float32)
        terms = {
            "id": [w * self._id_loss(logits[h], labels_B) for h, w in self.id_weights.items()],
            "triplet": [
                w * self.triplet(features[h], labels_B) for h, w in self.triplet_weights.items()
            ],
        }
        if self.centers:
            terms["center"] = [
                w * self.centers[h](features[h], labels_B) for h, w in self.center_weights.items()
            ]
        parts = {name: sum(values, start=zero) for name, values in terms.items()}
        return sum(parts.values(), start=zero), {name: x.detach() for name, x in parts.items()}

    def _id_loss(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        logits_BC = full_precision(logits_BC)
        if self.product is not None:
            logits_BC = self.product(logits_BC, labels_B)
        return functional.cross_entropy(logits_BC, labels_B, label_smoothing=self.label_smoothing)


def build_loss(model: ReidModel, **settings: Any) -> ReidLoss:
    """The loss of a fresh model, with the settings of `ReidLoss`.

    For a margin product the model's heads are made to give cosines, so this comes before the
    optimiser and before weights are loaded.
    """
    loss = ReidLoss(model.loss_layout, num_classes=model.num_classes, **settings)
    if loss.product is not None:
        use_cosine_logits(model)
    return loss


def _factors(own: dict[str, float], common: float) -> dict[str, float]:
    return {head: weight * common for head, weight in own.items() if weight * common}


def _margin_product(
    id_loss: IdLoss, margin: float | None, scale: float | None
) -> MarginProduct | None:
    if id_loss != "softmax":
        return MarginProduct(id_loss, margin, scale)
    if (margin, scale) != (None, None):
        raise ValueError(
            f"id_loss='softmax' has no margin and no scale, got id_margin={margin}, "
            f"id_scale={scale}"
        )
    return None
