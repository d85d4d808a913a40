"""Identity heads, their initial weights, and margin products against other implementations."""

import math

import pytest
import torch
from pytorch_metric_learning.losses import ArcFaceLoss, CircleLoss, CosFaceLoss
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from reid_models.heads import BNNeckHead, BottleneckHead, MarginProduct, use_cosine_logits

BATCH, DIM, IDENTITIES = 32, 12, 7


def parameter_count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def cosine_setting() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    features = torch.randn(BATCH, DIM, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(IDENTITIES, DIM, dtype=torch.float64)
    return features, weight, torch.arange(BATCH) % IDENTITIES


def cosines_of(features: Tensor, weight: Tensor) -> Tensor:
    return normalize(features) @ normalize(weight).T


def test_the_neck_of_a_bnneck_head_keeps_its_shift() -> None:
    head = BNNeckHead(DIM, IDENTITIES)
    assert {name for name, p in head.named_parameters() if p.requires_grad} == {
        "neck.weight",
        "classifier.weight",
    }
    assert not head.neck.bias.any()
    assert (head.neck.weight == 1).all()
    assert head.classifier.bias is None


def test_a_bnneck_head_starts_spread_where_asked_to() -> None:
    torch.manual_seed(0)
    head = BNNeckHead(20_000, 3, neck_std=0.1, train_shift=True)
    assert head.neck.bias.requires_grad
    for tensor, mean, std in (
        (head.neck.weight, 1.0, 0.1),
        (head.neck.bias, 0.0, 0.1),
        (head.classifier.weight, 0.0, 0.001),
    ):
        assert tensor.mean().item() == pytest.approx(mean, abs=0.03 * std)
        assert tensor.std().item() == pytest.approx(std, rel=0.03)
    with pytest.raises(ValueError, match="neck_std must be >= 0, got -1"):
        BNNeckHead(DIM, IDENTITIES, neck_std=-1)


@pytest.mark.parametrize(("identities", "parameters"), [(751, 390_383), (62, 213_310)])
def test_a_bottleneck_head_has_the_published_size(identities: int, parameters: int) -> None:
    with torch.device("meta"):
        assert parameter_count(BottleneckHead(768, identities)) == parameters


def test_a_bottleneck_head_starts_as_published() -> None:
    torch.manual_seed(0)
    head = BottleneckHead(768, 751)
    assert head.reduction.weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.02)
    assert head.neck.weight.mean().item() == pytest.approx(1.0, abs=0.005)
    assert head.neck.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert head.classifier.weight.std().item() == pytest.approx(0.001, rel=0.02)
    for bias in (head.reduction.bias, head.neck.bias, head.classifier.bias):
        assert not bias.any()


@pytest.mark.parametrize("share", [0.5, 0.2])
@torch.no_grad()
def test_a_bottleneck_head_drops_values_behind_its_norm_and_only_in_training(share: float) -> None:
    torch.manual_seed(0)
    head = BottleneckHead(DIM, IDENTITIES, bottleneck_dim=512, dropout=share)
    features = torch.randn(64, DIM)
    normal = head.neck(head.reduction(features))
    dropped = head.embed(features)
    zero = dropped == 0
    assert zero.float().mean().item() == pytest.approx(share, abs=0.02)
    torch.testing.assert_close(dropped[~zero], normal[~zero] / (1 - share))
    head.eval()
    torch.testing.assert_close(head.embed(features), head.neck(head.reduction(features)))


@pytest.mark.parametrize("head", [BNNeckHead(DIM, IDENTITIES), BottleneckHead(DIM, IDENTITIES)])
def test_a_head_is_its_neck_and_its_classifier(head: BNNeckHead | BottleneckHead) -> None:
    features = torch.randn(BATCH, DIM)
    head.eval()
    expected = head.embed(features) @ head.classifier.weight.T
    torch.testing.assert_close(head(features), expected)


@pytest.mark.parametrize("kind", [BNNeckHead, BottleneckHead])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cosine_logits(kind: type[BNNeckHead] | type[BottleneckHead], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = kind(DIM, IDENTITIES)
    names = set(head.state_dict())
    use_cosine_logits(nn.Sequential(head))
    assert set(head.state_dict()) == names
    features = 50 * torch.randn(BATCH, DIM)
    head.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits, neck = head(features), head.embed(features)
    expected = cosines_of(neck.float(), head.classifier.weight)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-6)
    assert logits.abs().max() <= 1 + 1e-6
    head.train()(features).square().sum().backward()
    for name, parameter in head.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name


@pytest.mark.parametrize(("dim", "identities"), [(384, 13_164), (2048, 98)])
def test_rows_for_cosines_start_at_unit_length(dim: int, identities: int) -> None:
    torch.manual_seed(0)
    head = BNNeckHead(dim, identities)
    use_cosine_logits(head)
    lengths = head.classifier.weight.norm(dim=1)
    assert lengths.mean().item() == pytest.approx(1.0, abs=0.01)
    assert lengths.std().item() < 0.05


def test_a_model_without_heads_gives_no_cosines() -> None:
    with pytest.raises(ValueError, match="Linear has no identity head"):
        use_cosine_logits(nn.Linear(2, 2))


@pytest.mark.parametrize(("margin", "scale"), [(0.5, 64.0), (0.2, 16.0)])
def test_arcface_is_that_of_pytorch_metric_learning(margin: float, scale: float) -> None:
    features, weight, labels = cosine_setting()
    reference = ArcFaceLoss(
        IDENTITIES, DIM, margin=math.degrees(margin), scale=scale, reducer=MeanReducer()
    )
    check_against(reference, MarginProduct("arcface", margin, scale), features, weight, labels)


@pytest.mark.parametrize(("margin", "scale"), [(0.35, 64.0), (0.1, 16.0)])
def test_cosface_is_that_of_pytorch_metric_learning(margin: float, scale: float) -> None:
    features, weight, labels = cosine_setting()
    reference = CosFaceLoss(IDENTITIES, DIM, margin=margin, scale=scale, reducer=MeanReducer())
    check_against(reference, MarginProduct("cosface", margin, scale), features, weight, labels)


def check_against(
    reference: ArcFaceLoss | CosFaceLoss,
    product: MarginProduct,
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
) -> None:
    reference.W.data = weight.T.clone()
    expected = reference(features, labels)
    (expected_gradient,) = torch.autograd.grad(expected, features)
    actual = cross_entropy(product(cosines_of(features, weight), labels), labels)
    (gradient,) = torch.autograd.grad(actual, features)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize(("margin", "scale"), [(0.25, 128.0), (0.4, 20.0)])
def test_circle_is_the_pair_loss_between_features_and_classifier_rows(
    margin: float, scale: float
) -> None:
    features, weight, labels = cosine_setting()
    reference = CircleLoss(m=margin, gamma=scale, reducer=MeanReducer())
    expected = reference(features, labels, ref_emb=weight, ref_labels=torch.arange(IDENTITIES))
    (expected_gradient,) = torch.autograd.grad(expected, features)
    product = MarginProduct("circle", margin, scale)
    actual = cross_entropy(product(cosines_of(features, weight), labels), labels)
    (gradient,) = torch.autograd.grad(actual, features)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.parametrize("kind", ["arcface", "cosface", "circle"])
def test_a_margin_only_ever_lowers_the_own_logit_and_stays_differentiable(kind: str) -> None:
    cosines = torch.linspace(-1, 1, 201).repeat(3, 1).T.contiguous().requires_grad_()
    labels = torch.zeros(201, dtype=torch.int64)
    product = MarginProduct(kind)  # type: ignore[arg-type]
    logits = product(cosines, labels)
    assert (logits[:, 0] <= logits[:, 1]).all()
    assert (logits[1:, 0] >= logits[:-1, 0]).all()
    cross_entropy(logits, labels).backward()
    assert cosines.grad is not None
    assert cosines.grad.isfinite().all()


def test_mistakes_are_named() -> None:
    labels = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="arcface takes cosines, got values up to 3"):
        MarginProduct("arcface")(torch.full((2, 2), -3.0), labels)
    with pytest.raises(ValueError, match="one of arcface, cosface, circle, got 'sphere'"):
        MarginProduct("sphere")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="margin >= 0 and scale > 0, got -0.1 and 64.0"):
        MarginProduct("cosface", margin=-0.1)
    with pytest.raises(ValueError, match="got 0.25 and 0"):
        MarginProduct("circle", scale=0)
