"""Identity heads: normalise a supervised feature, then score the training identities.

A head's scores are a linear layer's, or cosines for a margin product: ArcFace (Deng et al., arXiv
1801.07698), CosFace (Wang et al., arXiv 1801.09414), or the form of circle loss for class labels
(Sun et al., arXiv 2002.10857).

Shapes: B batch, d feature dim, n neck dim, C identities.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from reid_models.pooling import full_precision

Margin = Literal["arcface", "cosface", "circle"]

_PUBLISHED: dict[str, tuple[float, float]] = {
    "arcface": (0.5, 64.0),
    "cosface": (0.35, 64.0),
    "circle": (0.25, 128.0),
}
"""Margin and scale of the papers; circle's for persons."""


class IdentityHead(nn.Module, ABC):
    """Feature -> neck -> logits. The logits are a linear layer's, or cosines on demand.

    Cosines are those between the neck's output and each identity's row of the classifier's weight.
    The margin needs the labels, so it is the loss that applies it. Names and shapes of the weights
    are the same in both cases.
    """

    classifier: nn.Linear
    """[C, n] weight."""

    cosine: bool = False
    """Whether the logits are cosines; `use_cosine_logits` sets it."""

    @abstractmethod
    def embed(self, feature_Bd: Tensor) -> Tensor:
        """[B, d] -> the neck's output [B, n]. In training mode B must be at least 2."""

    def classify(self, neck_Bn: Tensor) -> Tensor:
        """[B, n] -> logits [B, C]; cosines are float32 at least, for half precision cannot tell
        small angles apart."""
        if not self.cosine:
            return self.classifier(neck_Bn)
        with torch.autocast(neck_Bn.device.type, enabled=False):
            return functional.linear(
                functional.normalize(full_precision(neck_Bn)),
                functional.normalize(full_precision(self.classifier.weight)),
            )

    def forward(self, feature_Bd: Tensor) -> Tensor:
        """[B, d] -> logits [B, C]. In training mode B must be at least 2."""
        return self.classify(self.embed(feature_Bd))


class BNNeckHead(IdentityHead):
    """Batch normalisation with its shift frozen at zero, then a linear classifier without bias.

    The triplet loss works on the feature before the neck, the identity loss behind it; a neck
    without shift keeps the normalised features centred, as a classifier without bias wants them.
    Source: Luo et al., "Bag of Tricks and a Strong Baseline for Deep Person Re-identification",
    CVPRW 2019 (arXiv 1903.07071).

    Args:
        dim: d, which is also n.
        num_classes: C.
        neck_std: spread of the neck's initial scale around 1 and shift around 0; LEViT's is 0.1.
        train_shift: whether the shift is trained; else it stays what it is at the start.
    """

    def __init__(
        self, dim: int, num_classes: int, *, neck_std: float = 0.0, train_shift: bool = False
    ) -> None:
        super().__init__()
        if neck_std < 0:
            raise ValueError(f"neck_std must be >= 0, got {neck_std}")
        self.neck = nn.BatchNorm1d(dim)
        if neck_std:
            nn.init.normal_(self.neck.weight, mean=1.0, std=neck_std)
            nn.init.normal_(self.neck.bias, std=neck_std)
        self.neck.bias.requires_grad_(train_shift)
        self.classifier = nn.Linear(dim, num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)

    def embed(self, feature_Bd: Tensor) -> Tensor:
        return self.neck(feature_Bd)


class BottleneckHead(IdentityHead):
    """Linear reduction, batch normalisation, dropout, linear classifier; no activation between.

    The part classifier of LA-Transformer (Sharma et al., arXiv 2106.03720), after that of PCB's
    widespread implementation. The neck's output is taken behind the dropout.

    Args:
        dim: d.
        num_classes: C.
        bottleneck_dim: n.
        dropout: share of the neck's values that is zeroed in training.
    """

    def __init__(
        self, dim: int, num_classes: int, *, bottleneck_dim: int = 256, dropout: float = 0.5
    ) -> None:
        super().__init__()
        self.reduction = nn.Linear(dim, bottleneck_dim)
        nn.init.kaiming_normal_(self.reduction.weight, mode="fan_out")
        nn.init.zeros_(self.reduction.bias)
        self.neck = nn.BatchNorm1d(bottleneck_dim)
        nn.init.normal_(self.neck.weight, mean=1.0, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(bottleneck_dim, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def embed(self, feature_Bd: Tensor) -> Tensor:
        return self.dropout(self.neck(self.reduction(feature_Bd)))


class MarginProduct:
    """Cosines -> logits that ask the own identity for a margin over the others.

    `arcface` adds the margin (in radians) to the own identity's angle, and goes on linearly where
    that would pass 180 degrees; `cosface` takes it off the own cosine; `circle` weights every
    cosine by how far it is from its optimum, the others' by relu(cos + m), the own by
    relu(1 + m - cos), around the boundaries m and 1 - m.

    Args:
        kind: which of them.
        margin: m; None for the paper's.
        scale: factor on the logits; None for the paper's.
    """

    def __init__(
        self, kind: Margin, margin: float | None = None, scale: float | None = None
    ) -> None:
        if kind not in _PUBLISHED:
            raise ValueError(f"the margin product is one of {', '.join(_PUBLISHED)}, got {kind!r}")
        published_margin, published_scale = _PUBLISHED[kind]
        self.kind = kind
        self.margin = published_margin if margin is None else margin
        self.scale = published_scale if scale is None else scale
        if self.margin < 0 or self.scale <= 0:
            raise ValueError(
                f"{kind} needs margin >= 0 and scale > 0, got {self.margin} and {self.scale}"
            )

    def __call__(self, cosines_BC: Tensor, labels_B: Tensor) -> Tensor:
        """[B, C] cosines and [B] identities -> logits [B, C].

        Raises:
            ValueError: these are no cosines; looked at on the CPU only, so as not to wait for a
                GPU.
        """
        if cosines_BC.device.type == "cpu" and (cosines_BC.detach().abs() > 1.001).any():
            raise ValueError(
                f"{self.kind} takes cosines, got values up to "
                f"{float(cosines_BC.detach().abs().max()):.3g}; see use_cosine_logits"
            )
        margin, own_B1 = self.margin, labels_B[:, None]
        target_B1 = cosines_BC.gather(1, own_B1)
        if self.kind == "arcface":
            # bounded away from 0, where the root has no finite gradient
            sine_B1 = (1 - target_B1.square()).clamp(min=1e-6).sqrt()
            turned_B1 = target_B1 * math.cos(margin) - sine_B1 * math.sin(margin)
            linear_B1 = target_B1 - margin * math.sin(margin)
            target_B1 = torch.where(target_B1 >= -math.cos(margin), turned_B1, linear_B1)
        elif self.kind == "cosface":
            target_B1 = target_B1 - margin
        else:
            pace_B1 = functional.relu(1 + margin - target_B1.detach())
            target_B1 = pace_B1 * (target_B1 - (1 - margin))
            pace_BC = functional.relu(cosines_BC.detach() + margin)
            cosines_BC = pace_BC * (cosines_BC - margin)
        return self.scale * cosines_BC.scatter(1, own_B1, target_B1)


def use_cosine_logits(model: nn.Module) -> None:
    """Let every identity head of a fresh model give cosines, for a margin product.

    The classifiers start again from rows of about unit length, however many there are: cosines do
    not feel the length, but their gradients do. A bias has no part in a cosine and is frozen.

    Raises:
        ValueError: the model has no identity head.
    """
    heads = [module for module in model.modules() if isinstance(module, IdentityHead)]
    if not heads:
        raise ValueError(f"{type(model).__name__} has no identity head that could give cosines")
    for head in heads:
        head.cosine = True
        nn.init.normal_(head.classifier.weight, std=head.classifier.in_features**-0.5)
        if head.classifier.bias is not None:
            head.classifier.bias.requires_grad_(False)
