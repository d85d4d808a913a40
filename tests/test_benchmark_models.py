"""The benchmark's plain networks are the models, and what it prints holds together."""

import json
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from benchmarks import models
from benchmarks.memory import peak_memory
from benchmarks.plain_models import plain_model
from benchmarks.steps import VARIANTS, Batch, System, check_equal, make_networks, make_step
from reid_models import ReidLoss, ReidModel, list_models
from tests.small_models import scrambled

CPU = torch.device("cpu")
VIT = "vit_tiny_patch16_224"
SMALL = {
    "fusion_reid": System(
        model="fusion_reid",
        image_size=(64, 32),
        identities=4,
        cameras=3,
        options={"cnn": "resnet26", "transformer": VIT, "fusion_dim": 12, "fusion_heads": 3}
        | {"drop_path": 0.0},
    ),
    "levit_s": System(
        model="levit_s", image_size=(64, 32), identities=4, options={"window": 2, "drop_path": 0.0}
    ),
    "lvit_net": System(
        model="lvit_net",
        image_size=(64, 32),
        identities=4,
        options={"transformer": VIT, "local_widths": (8, 16, 24, 32), "norm_groups": 8}
        | {"dfcf_heads": 3, "dfcf_iterations": 3, "dfcf_dropout": 0.0, "drop_path": 0.0},
    ),
    "la_transformer": System(
        model="la_transformer",
        image_size=(64, 48),
        identities=4,
        options={"transformer": VIT, "dropout": 0.0},
    ),
    "la_transformer_pp": System(
        model="la_transformer_pp",
        image_size=(64, 48),
        identities=4,
        options={"transformer": VIT, "dropout": 0.0},
    ),
}


def drawn(system: System, size: int = 8) -> Batch:
    batch = Batch.draw(system, size, CPU)
    return Batch(batch.images.double(), batch.cameras, batch.identities)


def gradient_norm(network: nn.Module, model: ReidModel, batch: Batch) -> tuple[float, float]:
    """The loss of a batch, and the length of its gradient by all parameters."""
    loss, _ = ReidLoss(model.loss_layout)(network(batch.images, batch.cameras), batch.identities)
    gradients = torch.autograd.grad(
        loss, [p for p in network.parameters() if p.requires_grad], allow_unused=True
    )
    squares = [g.square().sum().item() for g in gradients if g is not None]
    return loss.item(), sum(squares) ** 0.5


def test_every_system_is_measured() -> None:
    assert sorted(models.SYSTEMS) == list_models()


@pytest.mark.parametrize("name", SMALL)
def test_plain_network_is_the_model(name: str) -> None:
    model = scrambled(SMALL[name].build())
    plain, batch = plain_model(model), drawn(SMALL[name])
    assert plain.training
    expected, actual = (gradient_norm(m, model, batch) for m in (plain, model))
    assert actual == pytest.approx(expected, rel=1e-8)
    assert check_equal(model, plain, batch) < 1e-9
    with torch.no_grad():
        embeddings = [m(batch.images, batch.cameras).embedding for m in (model, plain)]
    torch.testing.assert_close(*embeddings, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", SMALL)
def test_other_weights_are_noticed(name: str) -> None:
    model = scrambled(SMALL[name].build())
    plain = plain_model(model)
    with torch.no_grad():
        weights = {key: p for key, p in plain.named_parameters() if key.endswith("weight")}
        next(p for key, p in weights.items() if "proj." in key).mul_(1.1)
    with pytest.raises(ValueError, match="cannot be compared"):
        check_equal(model, plain, drawn(SMALL[name]))


@torch.no_grad()
def test_a_small_feature_does_not_hide_behind_a_large_one() -> None:
    model = scrambled(SMALL["levit_s"].build())
    for parameter in model.heads["max_1"].neck.parameters():
        parameter.mul_(1e-7)
    plain, batch = plain_model(model), drawn(SMALL["levit_s"], size=2)
    assert check_equal(model, plain, batch) < 1e-9
    plain.heads["max_1"].neck.weight[-1].mul_(1.01)
    ours, theirs = (m(batch.images, batch.cameras).embedding for m in (model, plain))
    assert 0 < (ours - theirs).abs().max() < 1e-7 * theirs.abs().max()
    first = 3 * model.backbone.dim - 16
    with pytest.raises(ValueError, match=rf"in the columns from {first} on"):
        check_equal(model, plain, batch)


class Called(TorchFunctionMode):
    """The functions of PyTorch that a block of code calls."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: set[object] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.functions.add(func)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_plain_network_writes_attention_out() -> None:
    model = scrambled(SMALL["fusion_reid"].build()).eval()
    batch = drawn(SMALL["fusion_reid"], size=2)
    fused = functional.scaled_dot_product_attention
    for network, expected in ((plain_model(model), False), (model, True)):
        with Called() as called:
            network(batch.images, batch.cameras)
        assert torch.conv2d in called.functions
        assert (fused in called.functions) == expected


def test_options_that_are_not_written_out_are_refused() -> None:
    options = {**SMALL["la_transformer"].options, "gelt_lambda_on": "global"}
    system = System(model="la_transformer", image_size=(64, 48), identities=4, options=options)
    with pytest.raises(ValueError, match="'global'"):
        plain_model(system.build())


def test_steps_of_all_variants_leave_no_gradient() -> None:
    system = SMALL["levit_s"]
    model, batch = system.build(), Batch.draw(system, 8, CPU)
    # not every CPU has convolutions in float16, and compiling takes minutes
    ways = {n: w for n, w in VARIANTS.items() if w.autocast != torch.float16 and not w.compiled}
    networks = make_networks(model, ways)
    for task in ("inference", "training"):
        values = {}
        for name, way in ways.items():
            network = networks[name].train(task == "training")
            values[name] = make_step(network, model, task, batch, way)()
            assert all(p.grad is None for p in network.parameters())
        for value in values.values():
            assert value.requires_grad == (task == "training")
            difference = (value.float() - values["plain"]).norm() / values["plain"].norm()
            assert difference < 0.1


def test_peak_memory_is_that_of_the_call() -> None:
    peak = peak_memory(lambda: torch.ones(2**25).sum(), CPU)
    if peak is None:
        pytest.skip("this system does not tell")
    assert 120 < peak < 160


def test_report(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "SYSTEMS", SMALL)
    file = tmp_path / "models.json"
    asked = ["--systems", "levit_s", "la_transformer", "--batch", "4", "8", "--rounds", "2"]
    models.main([*asked, "--json", str(file)])
    written = json.loads(file.read_text())
    assert written["machine"]["threads"] == torch.get_num_threads()
    records = written["records"]
    lines = capsys.readouterr().out.splitlines()
    assert len(records) == 2 * 2 * 2 * 2 == len(lines) - 2
    assert len({line.count("|") for line in lines}) == 1
    for record, line in zip(records, lines[2:], strict=True):
        first, median, third = record["milliseconds"]
        assert 0 < first <= median <= third
        speed = 1e3 * record["batch"] / median
        assert record["images_per_second"] == pytest.approx(speed)
        assert set(record["ratios"]) == ({"plain"} if record["variant"] == "ours" else set())
        assert record["of_matrix_rate"] > 0
        assert line.startswith(f"| {record['system']} | {record['task']} | {record['batch']} |")
