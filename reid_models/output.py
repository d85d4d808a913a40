"""What every model returns and which loss terms it asks for: names instead of tuple positions.

Shapes: B batch, C identities of the training set, D embedding dim, d dim of one head's feature.
"""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ReidOutput:
    """Result of one forward pass, in training and in inference."""

    embedding: Tensor
    """[B, D] float, not normalised: the vector that retrieval searches after L2 normalisation."""

    logits: dict[str, Tensor] = field(default_factory=dict)
    """Head name -> [B, C] identity scores, or cosines for a loss with a margin. Empty in eval
    mode."""

    metric_features: dict[str, Tensor] = field(default_factory=dict)
    """Head name -> [B, d] float tensor whose distances the metric terms judge; which one it is
    (before the neck, behind it, the logits) is the model's own. Empty in eval mode."""


@dataclass(frozen=True)
class LossTerm:
    """The supervision that one head gets; a model's `loss_layout` is a tuple of these.

    The loss is the weighted sum of the terms; where a paper takes their mean, the weights are one
    over their number.
    """

    head: str
    """Key into `ReidOutput.logits` and `ReidOutput.metric_features`."""

    id_weight: float = 1.0
    """Weight of the identity loss on the head's logits; 0 leaves the term out."""

    triplet_weight: float = 1.0
    """Weight of the metric terms, the batch-hard triplet loss and, where one is asked for, the
    center loss, on the head's metric feature; 0 leaves them out."""

    def __post_init__(self) -> None:
        if self.id_weight < 0 or self.triplet_weight < 0:
            raise ValueError(
                f"loss weights of head {self.head!r} must be >= 0, "
                f"got id_weight={self.id_weight}, triplet_weight={self.triplet_weight}"
            )
