import pytest
import torch
from torch import nn

from pipelines.engine.optimizer import build_optimizer, set_learning_rates
from pipelines.engine.schedule import ScheduleConfig, learning_rate

SETTINGS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "bias_lr_factor": 2.0}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.PReLU(), nn.Linear(8, 3))


def train(model, optimizer, before_step, steps=5):
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
        before_step(step)
        optimizer.step()
    return model.state_dict()


def test_two_groups_split_by_name():
    model = network()
    optimizer = build_optimizer(model, name="sgd", **SETTINGS)
    named = {id(p): name for name, p in model.named_parameters()}
    groups = {g["name"]: [named[id(p)] for p in g["params"]] for g in optimizer.param_groups}
    assert groups == {
        "weight": ["0.weight", "1.weight", "2.weight", "3.weight"],
        "bias": ["0.bias", "1.bias", "3.bias"],
    }
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_updates_are_those_of_one_group_a_tensor():
    schedule = ScheduleConfig(epochs=5, steps_per_epoch=1, warmup_epochs=2)
    reference = network()
    one_by_one = torch.optim.SGD(
        [
            {"params": [p], "lr": 0.2 if "bias" in name else 0.1, "weight_decay": 0.01}
            for name, p in reference.named_parameters()
        ],
        lr=0.1,
        momentum=0.9,
    )
    base = [group["lr"] for group in one_by_one.param_groups]

    def by_hand(step):
        for group, lr in zip(one_by_one.param_groups, base, strict=True):
            group["lr"] = learning_rate(schedule, lr, step + 1)

    expected = train(reference, one_by_one, by_hand)
    model = network()
    optimizer = build_optimizer(model, name="sgd", **SETTINGS)
    actual = train(model, optimizer, lambda step: set_learning_rates(optimizer, schedule, step))
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, msg=name)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_names_give_their_optimiser_with_decay_on_everything(name, kind):
    optimizer = build_optimizer(network(), name=name, **SETTINGS)
    assert type(optimizer) is kind
    assert all(group["weight_decay"] == 0.01 for group in optimizer.param_groups)


def test_set_learning_rates_gives_each_group_its_own_and_returns_that_of_the_weights():
    optimizer = build_optimizer(network(), name="sgd", **SETTINGS)
    schedule = ScheduleConfig(
        epochs=10, steps_per_epoch=2, warmup_epochs=4, warmup_start_lr=0.0, granularity="step"
    )
    assert set_learning_rates(optimizer, schedule, 3) == pytest.approx(0.05)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.1])


def test_frozen_parameters_are_left_out_and_a_group_may_be_missing():
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("weight" in name)
    optimizer = build_optimizer(model, name="adamw", **SETTINGS)
    assert [group["name"] for group in optimizer.param_groups] == ["weight"]


def test_refuses_unknown_names_and_models_without_parameters():
    with pytest.raises(ValueError, match="lamb"):
        build_optimizer(network(), name="lamb", **SETTINGS)
    with pytest.raises(ValueError, match="ReLU"):
        build_optimizer(nn.ReLU(), name="sgd", **SETTINGS)
