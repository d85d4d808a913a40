"""The training loss against plain loops over its terms."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from reid_models import LossTerm, ReidLoss, ReidModel, ReidOutput
from reid_models.heads import BNNeckHead, BottleneckHead, IdentityHead, MarginProduct
from reid_models.losses import build_loss
from tests.slow_losses import slow_cross_entropy, slow_triplet


def test_centers_are_state_that_only_training_moves() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    layout = (LossTerm("a", 0.0), LossTerm("b", triplet_weight=0.0))
    loss = ReidLoss(layout, center_weight=0.1, num_classes=4)
    fresh = ReidLoss(layout, center_weight=0.1, num_classes=4)
    fresh.load_state_dict(loss.state_dict())
    output = ReidOutput(features, logits={"b": torch.randn(6, 4)}, metric_features={"a": features})
    loss(output, labels)
    saved = {name: tensor.clone() for name, tensor in loss.state_dict().items()}
    assert [tuple(tensor.shape) for tensor in saved.values()] == [(4, 3)]
    fresh.load_state_dict(saved)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [x.eval()(output, labels)[1]["center"] for x in (loss, fresh)]
    assert values[0] == values[1]
    assert values[0].dtype == torch.float32
    assert torch.equal(saved["centers.a.centers_Cd"], loss.centers["a"].centers_Cd)
    with pytest.raises(RuntimeError, match="centers_Cd"):
        ReidLoss(layout, center_weight=0.1, num_classes=5).load_state_dict(saved)


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
    assert parts.keys() == {"id", "triplet"}
    assert parts["id"].item() == pytest.approx(id_loss, rel=1e-5)
    assert parts["triplet"].item() == pytest.approx(triplet_loss, rel=1e-5)
    assert total.item() == pytest.approx(id_loss + triplet_loss, rel=1e-5)
    assert not parts["id"].requires_grad
    assert not parts["triplet"].requires_grad
    assert not loss.state_dict()
    total.backward()
    assert output.logits["a"].grad is not None
    assert output.metric_features["b"].grad is not None


def test_half_precision_scores_are_summed_in_float32() -> None:
    """With 751 identities a sum of exponentials in bfloat16 would stop growing at a few hundred."""
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 751).bfloat16(), torch.arange(8)
    only_id = (LossTerm("a", triplet_weight=0.0),)
    total, _ = ReidLoss(only_id)(ReidOutput(torch.zeros(8, 1), {"a": logits}), labels)
    assert total.dtype == torch.float32
    assert total.item() == pytest.approx(slow_cross_entropy(logits.float(), labels, 0.1), rel=1e-5)


def test_the_mix_of_levit_is_a_mean_of_seven_terms() -> None:
    torch.manual_seed(0)
    labels = torch.arange(12) // 4
    names = [str(i) for i in range(5)]
    logits = {name: torch.randn(12, 3) for name in names}
    features = {name: 3 * torch.randn(12, 6) for name in names[:2]}
    layout = tuple(LossTerm(n, 1 / 7, 1 / 7 if n in features else 0.0) for n in names)
    loss = ReidLoss(layout, label_smoothing=0.0, normalize_triplet=True)
    total, _ = loss(ReidOutput(torch.zeros(12, 1), logits, features), labels)
    terms = [slow_cross_entropy(x, labels, 0.0) for x in logits.values()]
    terms += [slow_triplet(normalize(x), labels, None) for x in features.values()]
    assert total.item() == pytest.approx(sum(terms) / 7, rel=1e-5)


def test_the_mixes_of_la_transformer() -> None:
    """Fourteen summed cross entropies; and one head's, smoothed, with a hinge on its logits."""
    labels = torch.arange(8) // 2
    rows = tuple(LossTerm(f"row_{i}", triplet_weight=0.0) for i in range(14))
    output = ReidOutput(torch.zeros(8, 1), {term.head: torch.zeros(8, 751) for term in rows})
    total, _ = ReidLoss(rows, label_smoothing=0.0)(output, labels)
    assert total.item() == pytest.approx(14 * math.log(751), rel=1e-6)
    torch.manual_seed(0)
    logits = torch.randn(8, 62)
    output = ReidOutput(torch.zeros(8, 1), {"pooled": logits}, {"pooled": logits})
    total, _ = ReidLoss((LossTerm("pooled"),), margin=0.3)(output, labels)
    expected = slow_cross_entropy(logits, labels, 0.1) + slow_triplet(logits, labels, 0.3)
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_a_term_of_weight_zero_needs_no_head() -> None:
    output, labels = two_heads()
    only_id = (LossTerm("a", triplet_weight=0.0), LossTerm("absent", 0.0, 0.0))
    total, parts = ReidLoss(only_id)(output, labels)
    assert parts["triplet"].item() == 0
    assert total.item() == parts["id"].item()


class TwoHeads(ReidModel):
    """One linear layer on pixels and a head of each kind."""

    def __init__(self) -> None:
        super().__init__(4, image_size=(2, 2), camera_count=0)
        self.layer = torch.nn.Linear(12, 8)
        heads = {"neck": BNNeckHead(8, 4), "bottleneck": BottleneckHead(8, 4, bottleneck_dim=6)}
        self.heads = torch.nn.ModuleDict(heads)
        self.loss_layout = tuple(LossTerm(name) for name in heads)

    def load_branch_weights(self, default: str | None) -> None:
        """There are no branches."""

    def extract(self, images_BCHW: Tensor, cameras_B: Tensor | None) -> ReidOutput:
        feature_BD = self.layer(images_BCHW.flatten(1))
        logits = {name: head(feature_BD) for name, head in self.heads.items()}
        return ReidOutput(feature_BD, logits, dict.fromkeys(logits, feature_BD))


@pytest.mark.parametrize("id_loss", ["softmax", "arcface", "cosface", "circle"])
def test_a_built_loss_trains_every_trainable_parameter(id_loss: str) -> None:
    torch.manual_seed(0)
    model = TwoHeads()
    loss = build_loss(model, id_loss=id_loss, center_weight=0.01)
    heads = [m for m in model.modules() if isinstance(m, IdentityHead)]
    assert [head.cosine for head in heads] == [id_loss != "softmax"] * 2
    images, labels = torch.randn(16, 3, 2, 2), torch.arange(16) // 4
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam(trainable.values(), lr=0.01)
    totals = []
    for _ in range(60):
        optimizer.zero_grad()
        total, parts = loss(model(images), labels)
        total.backward()
        assert sum(part.item() for part in parts.values()) == pytest.approx(total.item(), rel=1e-5)
        assert all(p.grad is not None for p in trainable.values())
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.7 * totals[0]


def test_a_margin_product_stands_before_the_cross_entropy() -> None:
    torch.manual_seed(0)
    cosines, labels = 2 * torch.rand(6, 5) - 1, torch.tensor([0, 0, 1, 1, 4, 4])
    layout = (LossTerm("a", triplet_weight=0.0),)
    loss = ReidLoss(layout, id_loss="arcface", id_margin=0.3, id_scale=8.0)
    total, _ = loss(ReidOutput(torch.zeros(6, 1), {"a": cosines}), labels)
    logits = MarginProduct("arcface", 0.3, 8.0)(cosines, labels)
    assert total.item() == pytest.approx(slow_cross_entropy(logits, labels, 0.1), rel=1e-5)


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
    with pytest.raises(ValueError, match="center loss needs num_classes, got 0"):
        ReidLoss((LossTerm("a"),), center_weight=0.1)
    with pytest.raises(ValueError, match="softmax' has no margin.*id_margin=0.5"):
        ReidLoss((LossTerm("a"),), id_margin=0.5)
    with pytest.raises(ValueError, match="got 'sphere'"):
        ReidLoss((LossTerm("a"),), id_loss="sphere")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="arcface takes cosines"):
        ReidLoss((LossTerm("a"),), id_loss="arcface")(output, labels)
