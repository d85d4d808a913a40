"""Losses as plain loops over numbers.

Shapes: B batch, d feature dim, C identities; features [B, d], labels [B], logits [B, C].
"""

import math

from torch import Tensor


def slow_triplet(
    features: Tensor, labels: Tensor, margin: float | None, *, lone_anchors: bool = False
) -> float:
    """Batch-hard triplet loss, anchor by anchor; the soft margin where there is none."""
    losses = []
    for a in range(len(features)):
        positives = [
            math.dist(features[a].tolist(), features[p].tolist())
            for p in range(len(features))
            if p != a and labels[p] == labels[a]
        ]
        negatives = [
            math.dist(features[a].tolist(), features[n].tolist())
            for n in range(len(features))
            if labels[n] != labels[a]
        ]
        if lone_anchors and not positives:
            positives = [0.0]
        if not positives or not negatives:
            continue
        gap = max(positives) - min(negatives)
        soft = math.log1p(math.exp(gap))
        losses.append(soft if margin is None else max(0.0, gap + margin))
    return sum(losses) / len(losses) if losses else 0.0


def slow_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    """Mean over the rows of the cross entropy with a smoothed target."""
    losses = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        target = [(1 - smoothing) * (k == label) + smoothing / len(row) for k in range(len(row))]
        losses.append(-sum(t * (value - log_sum) for t, value in zip(target, row, strict=True)))
    return sum(losses) / len(losses)
