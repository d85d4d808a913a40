"""The identity head of a supervised feature.

Shapes: B batch, d feature dim, C identities.
"""

from torch import Tensor, nn


class BNNeckHead(nn.Module):
    """Batch normalisation with its shift frozen at zero, then a linear classifier without bias.

    The triplet loss works on the feature before the neck, the identity loss behind it; a neck
    without shift keeps the normalised features centred, as a classifier without bias wants them.
    Source: Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-identification",
    CVPRW 2019 (arXiv 1903.07071).
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.neck = nn.BatchNorm1d(dim)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(dim, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def forward(self, feature_Bd: Tensor) -> Tensor:
        """[B, d] -> logits [B, C]. In training mode B must be at least 2."""
        return self.classifier(self.neck(feature_Bd))
