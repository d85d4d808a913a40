"""Triplet and center losses against plain loops, and against pytorch-metric-learning's."""

import math
import warnings

import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize

from reid_models import LossTerm, ReidLoss, ReidOutput
from reid_models.metric_losses import BatchHardTripletLoss, CenterLoss
from tests.slow_losses import slow_triplet


@pytest.mark.parametrize("normal", [False, True])
@pytest.mark.parametrize("margin", [None, 0.0, 0.3])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [3, 3, 3, 1, 1, 7], [0] * 3 + [1] * 30])
def test_triplet_equals_the_plain_loop(
    labels: list[int], margin: float | None, normal: bool
) -> None:
    torch.manual_seed(0)
    features = 0.5 * torch.randn(len(labels), 8)
    identities = torch.tensor(labels)
    loss = BatchHardTripletLoss(margin, normalize=normal)(features, identities)
    compared = normalize(features) if normal else features
    expected = slow_triplet(compared, identities, margin)
    assert expected > 0
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("margin", [None, 0.3])
def test_lone_anchors_are_their_own_positives_if_asked_to(margin: float | None) -> None:
    torch.manual_seed(0)
    features, labels = 0.05 * torch.randn(6, 8), torch.tensor([5, 5, 5, 1, 2, 3])
    loss = BatchHardTripletLoss(margin, lone_anchors=True)(features, labels)
    expected = slow_triplet(features, labels, margin, lone_anchors=True)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(slow_triplet(features, labels, margin), rel=1e-2)


@pytest.mark.parametrize("margin", [None, 0.3])
@pytest.mark.parametrize("identities", [4, 20])
def test_triplet_and_its_gradient_are_those_of_pytorch_metric_learning(
    margin: float | None, identities: int
) -> None:
    torch.manual_seed(0)
    features = torch.randn(32, 8, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(identities, (32,))
    distance = LpDistance(normalize_embeddings=False)
    reference = TripletMarginLoss(
        margin=margin or 0.0, smooth_loss=margin is None, distance=distance, reducer=MeanReducer()
    )
    expected = reference(features, labels, BatchHardMiner(distance=distance)(features, labels))
    (expected_gradient,) = torch.autograd.grad(expected, features)
    loss = BatchHardTripletLoss(margin)(features, labels)
    (gradient,) = torch.autograd.grad(loss, features)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 0, 0]])
def test_triplet_without_a_triplet_is_zero_and_differentiable(labels: list[int]) -> None:
    features = torch.randn(4, 8, requires_grad=True)
    loss = BatchHardTripletLoss()(features, torch.tensor(labels))
    loss.backward()
    assert loss.item() == 0
    assert features.grad is not None
    assert not features.grad.any()


@pytest.mark.parametrize("normal", [False, True])
@pytest.mark.parametrize("batch", [8, 64])
def test_triplet_of_identical_images_has_no_gradient(batch: int, normal: bool) -> None:
    features = torch.ones(batch, 16, requires_grad=True)
    loss = BatchHardTripletLoss(normalize=normal)(features, torch.arange(batch) % 2)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2), rel=1e-6)
    assert features.grad is not None
    assert not features.grad.any()


def test_triplet_of_long_features_is_exact_under_autocast_too() -> None:
    torch.manual_seed(0)
    features = 1000 + torch.randn(40, 64)
    labels = torch.arange(40) % 10
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = BatchHardTripletLoss()(features, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_triplet(features, labels, None), rel=1e-4)


def test_center_loss_and_its_centers_equal_the_plain_loop() -> None:
    torch.manual_seed(0)
    loss = CenterLoss(5, rate=0.5)
    centers = [[0.0] * 3 for _ in range(5)]
    for labels in ([0, 0, 1, 4], [0, 1, 1, 1], [4, 2, 2, 0]):
        features = torch.randn(4, 3, requires_grad=True)
        value = loss(features, torch.tensor(labels))
        away = [
            [x - c for x, c in zip(row, centers[label], strict=True)]
            for row, label in zip(features.tolist(), labels, strict=True)
        ]
        expected = sum(x * x for row in away for x in row) / 2 / len(labels)
        assert value.item() == pytest.approx(expected, rel=1e-5)
        value.backward()
        torch.testing.assert_close(features.grad, torch.tensor(away) / len(labels))
        for label in set(labels):
            own = [row for row, other in zip(away, labels, strict=True) if other == label]
            for k in range(3):
                centers[label][k] += 0.5 * sum(row[k] for row in own) / (1 + len(own))
        torch.testing.assert_close(loss.centers_Cd, torch.tensor(centers))


def test_no_loss_asks_the_device_for_a_value() -> None:
    """Tensors without content have no values to ask for; centers of a checkpoint move along."""
    loss = ReidLoss((LossTerm("a"),), center_weight=0.1, num_classes=5)
    loss.load_state_dict({"centers.a.centers_Cd": torch.zeros(5, 4)})
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # autocast's, on a machine without the device
        features = torch.empty(8, 4, device="cuda", requires_grad=True)
        logits = torch.empty(8, 5, device="cuda", requires_grad=True)
        labels = torch.empty(8, dtype=torch.int64, device="cuda")
        _, parts = loss(ReidOutput(features, {"a": logits}, {"a": features}), labels)
    assert {name: part.device.type for name, part in parts.items()} == dict.fromkeys(
        ("id", "triplet", "center"), "cuda"
    )
