import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.engine.optimizer import (
    build_optimizer,
    freeze,
    set_learning_rates,
    set_trainable,
)
from pipelines.engine.schedule import ScheduleConfig, learning_rate

SETTINGS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "bias_lr_factor": 2.0}


@pytest.fixture
def one_worker(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


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


def test_adam_adds_the_decay_to_the_gradient_and_adamw_does_not():
    """Without another gradient Adam's first step is the whole rate, whatever the decay."""
    moved = {}
    for name in ("adam", "adamw"):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 2.0)
        optimizer = build_optimizer(model, name=name, **SETTINGS)
        (0 * model.weight).sum().backward()
        optimizer.step()
        moved[name] = 2.0 - model.weight.item()
    assert moved == pytest.approx({"adam": 0.1, "adamw": 0.1 * 0.01 * 2.0}, rel=1e-4)


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


def test_nesterov_is_the_formula():
    model, reference = nn.Linear(3, 2), nn.Linear(3, 2)
    reference.load_state_dict(model.state_dict())
    settings = {**SETTINGS, "bias_lr_factor": 1.0}
    optimizer = build_optimizer(model, name="sgd", nesterov=True, **settings)
    buffers = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    for step in range(4):
        images = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for network in (model, reference):
            network.zero_grad()
            network(images).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            for name, p in reference.named_parameters():
                gradient = p.grad + 0.01 * p
                buffers[name] = gradient if step == 0 else 0.9 * buffers[name] + gradient
                p -= 0.1 * (gradient + 0.9 * buffers[name])
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, msg=name)
    for wrong in ({"name": "adam"}, {"name": "sgd", "momentum": 0.0}):
        with pytest.raises(ValueError, match="nesterov is for sgd with momentum"):
            build_optimizer(model, nesterov=True, **{**settings, **wrong})


def test_frozen_parts_are_found_by_name_and_do_not_move():
    model = network()
    freeze(model, ["0.", "1.weight"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"0.weight", "0.bias", "1.weight"}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_optimizer(model, name="sgd", **SETTINGS)
    after = train(model, optimizer, lambda step: None)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert moved == {"1.bias", "2.weight", "3.weight", "3.bias"} | statistics
    with pytest.raises(ValueError, match="contains 'stem'; its parts are 0, 1, 2, 3"):
        freeze(model, ["stem"])


@pytest.mark.parametrize(
    ("part", "frozen"),
    [
        ("blocks.1", {"blocks.1.weight", "blocks.1.bias"}),
        ("1.weight", {"blocks.1.weight"}),
        ("s.1.b", {"blocks.1.bias"}),
        ("1", {"blocks.1.weight", "blocks.1.bias"}),
        ("stage1", {"stage1.weight", "stage1.bias", "stage10.weight", "stage10.bias"}),
        ("blocks.1.", {"blocks.1.weight", "blocks.1.bias"}),
    ],
)
def test_a_number_of_a_frozen_part_is_a_whole_one(part: str, frozen: set[str]) -> None:
    layers = [nn.Linear(1, 1) for _ in range(12)]
    model = nn.ModuleDict({"blocks": nn.ModuleList(layers), "stage1": nn.Linear(1, 1)})
    model["stage10"] = nn.Linear(1, 1)
    freeze(model, [part])
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == frozen
    with pytest.raises(ValueError, match="contains 'blocks.12'"):
        freeze(model, ["blocks.12"])


@pytest.mark.parametrize("distributed", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_part_that_opens_late_trains_as_if_it_were_new_then(name, distributed, one_worker):
    """The closed layer has neither decay nor optimiser state, and the two parts' updates are those
    of two optimisers, the second of which comes with the opening."""
    reference, model = network(), network()
    settings = {**SETTINGS, "lr": 0.01, "bias_lr_factor": 1.0, "name": name}
    wrapped = DistributedDataParallel(model, find_unused_parameters=True) if distributed else model
    optimizer = build_optimizer(wrapped, **settings)
    early = build_optimizer(nn.ModuleList([reference[i] for i in (1, 2, 3)]), **settings)
    late = build_optimizer(reference[0], **settings)
    names = {name for name, _ in model.named_parameters()}
    for step in range(5):
        images = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        open_names = names if step >= 2 else {n for n in names if not n.startswith("0.")}
        set_trainable(wrapped, open_names)
        optimizer.zero_grad()
        wrapped(images).square().mean().backward()
        optimizer.step()
        reference.zero_grad()
        reference(images).square().mean().backward()
        early.step()
        if step >= 2:
            late.step()
        assert (model[0].weight in optimizer.state) == (step >= 2)
    for key, tensor in reference.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], tensor, msg=key)
    with pytest.raises(ValueError, match="has no parameter 'head.weight'"):
        set_trainable(wrapped, {"head.weight"})
