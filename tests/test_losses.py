"""The training loss against plain loops over anchors, positives and negatives."""

import math

import pytest
import torch
from torch import Tensor

from reid_models import LossTerm, ReidLoss, ReidOutput
from reid_models.losses import BatchHardTripletLoss


def slow_triplet(features: Tensor, labels: Tensor, margin: float | None) -> float:
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
        if not positives or not negatives:
            continue
        gap = max(positives) - min(negatives)
        soft = math.log1p(math.exp(gap))
        losses.append(soft if margin is None else max(0.0, gap + margin))
    return sum(losses) / len(losses) if losses else 0.0


def slow_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> float:
    losses = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        target = [(1 - smoothing) * (k == label) + smoothing / len(row) for k in range(len(row))]
        losses.append(-sum(t * (value - log_sum) for t, value in zip(target, row, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("margin", [None, 0.0, 0.3])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [3, 3, 3, 1, 1, 7], [0] * 3 + [1] * 30])
def test_triplet_equals_the_plain_loop(labels: list[int], margin: float | None) -> None:
    torch.manual_seed(0)
    features = 0.5 * torch.randn(len(labels), 8)
    identities = torch.tensor(labels)
    loss = BatchHardTripletLoss(margin)(features, identities)
    expected = slow_triplet(features, identities, margin)
    assert expected > 0
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 0, 0]])
def test_triplet_without_a_triplet_is_zero_and_differentiable(labels: list[int]) -> None:
    features = torch.randn(4, 8, requires_grad=True)
    loss = BatchHardTripletLoss()(features, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


@pytest.mark.parametrize("batch", [8, 64])
def test_triplet_of_identical_images_has_a_finite_gradient(batch: int) -> None:
    features = torch.ones(batch, 16, requires_grad=True)
    loss = BatchHardTripletLoss()(features, torch.arange(batch) % 2)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), abs=1e-3)
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_triplet_stays_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    features = 100 + torch.randn(40, 64)
    labels = torch.arange(40) % 10
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = BatchHardTripletLoss()(features, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_triplet(features, labels, None), rel=0.02)


def two_heads() -> tuple[ReidOutput, Tensor]:
    torch.manual_seed(0)
    output = ReidOutput(
        torch.randn(6, 4),
        logits={"a": torch.randn(6, 5, requires_grad=True), "b": torch.randn(6, 5)},
        metric_features={"a": torch.randn(6, 3), "b": torch.randn(6, 7, requires_grad=True)},
    )
    return output, torch.tensor([0, 0, 1, 1, 4, 4])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_total_is_the_weighted_sum_over_the_layout(smoothing: float) -> None:
    output, labels = two_heads()
    layout = (LossTerm("a", id_weight=2.0, triplet_weight=0.0), LossTerm("b", triplet_weight=0.5))
    loss = ReidLoss(
        layout, label_smoothing=smoothing, margin=0.3, id_weight=3.0, triplet_weight=5.0
    )
    total, parts = loss(output, labels)
    id_loss = 3 * (
        2 * slow_cross_entropy(output.logits["a"], labels, smoothing)
        + slow_cross_entropy(output.logits["b"], labels, smoothing)
    )
    triplet_loss = 5 * 0.5 * slow_triplet(output.metric_features["b"], labels, 0.3)
    assert parts["id"].item() == pytest.approx(id_loss, rel=1e-5)
    assert parts["triplet"].item() == pytest.approx(triplet_loss, rel=1e-5)
    assert total.item() == pytest.approx(id_loss + triplet_loss, rel=1e-5)
    assert not parts["id"].requires_grad
    assert not parts["triplet"].requires_grad
    total.backward()
    assert output.logits["a"].grad is not None
    assert output.metric_features["b"].grad is not None


def test_a_term_of_weight_zero_needs_no_head() -> None:
    output, labels = two_heads()
    only_id = (LossTerm("a", triplet_weight=0.0), LossTerm("absent", 0.0, 0.0))
    total, parts = ReidLoss(only_id)(output, labels)
    assert parts["triplet"].item() == 0
    assert total.item() == parts["id"].item()


def test_mistakes_are_named() -> None:
    output, labels = two_heads()
    with pytest.raises(ValueError, match="no head c; is the model in training mode"):
        ReidLoss((LossTerm("c"),))(output, labels)
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\), got 1.5"):
        ReidLoss((LossTerm("a"),), label_smoothing=1.5)
    with pytest.raises(ValueError, match=r"margin must be >= 0.*got -1"):
        ReidLoss((LossTerm("a"),), margin=-1)
    with pytest.raises(ValueError, match="id_weight=-1"):
        ReidLoss((LossTerm("a"),), id_weight=-1)
    with pytest.raises(ValueError, match="every loss term has weight 0"):
        ReidLoss((LossTerm("a"),), id_weight=0, triplet_weight=0)
    with pytest.raises(ValueError, match=r"head 'a'.*triplet_weight=-0.5"):
        LossTerm("a", triplet_weight=-0.5)
