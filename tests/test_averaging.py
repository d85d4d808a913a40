"""Weight averages against plain means of kept copies, and batch statistics measured anew."""

import math

import pytest
import torch
from torch import nn

from pipelines.engine import ScheduleConfig, load_checkpoint, save_checkpoint, train_step
from pipelines.engine.averaging import AverageConfig, WeightAverage, estimate_batch_norms
from pipelines.engine.weights import read_tensors, write_tensors
from tests.tiny_training import TinyNetwork, tiny_batch, tiny_state

SCHEDULE = ScheduleConfig(epochs=5, steps_per_epoch=4)
UNIFORM = AverageConfig(kind="uniform", start_epoch=3)
EMA = AverageConfig(kind="ema", start_epoch=2, decay=0.7)


def train(state, average, steps):
    """Take steps; the model's tensors after each of them, as copies."""
    copies = []
    for _ in range(steps):
        train_step(state, tiny_batch(state.step))
        average.after_step(state.step)
        copies.append({n: t.double().clone() for n, t in state.model.state_dict().items()})
    return copies


@pytest.mark.parametrize(
    ("cosine", "extra", "snapshots"), [(75, 25, 41), (55, 25, 37), (15, 15, 19)]
)
def test_levit_averages_its_published_number_of_snapshots(cosine, extra, snapshots):
    schedule = ScheduleConfig(epochs=cosine + extra, steps_per_epoch=3)
    config = AverageConfig(kind="uniform", start_epoch=int(cosine * 0.8))
    assert config.members(schedule) == snapshots
    average = WeightAverage(nn.Linear(2, 2), config, schedule)
    for step in range(1, schedule.total_steps + 1):
        average.after_step(step)
    assert average.count == snapshots


@pytest.mark.parametrize("start", [0, 0.3, 1, 1.5, 2, 4.9, 5, 5.1, 9])
@pytest.mark.parametrize("kind", ["uniform", "ema"])
def test_members_are_counted_as_they_come(kind, start):
    config = AverageConfig(kind=kind, start_epoch=start)
    included = sum(config.includes(step, 4) for step in range(1, SCHEDULE.total_steps + 1))
    assert config.members(SCHEDULE) == included
    if included == 0:
        with pytest.raises(ValueError, match=f"start_epoch={start} lies behind the last epoch, 5"):
            WeightAverage(nn.Linear(2, 2), config, SCHEDULE)


def test_the_uniform_average_is_the_mean_of_the_ends_of_epochs():
    state = tiny_state()
    average = WeightAverage(state.model, UNIFORM, SCHEDULE)
    copies = train(state, average, 20)
    assert average.count == 3
    average.copy_to_model()
    for name, parameter in state.model.named_parameters():
        expected = torch.stack([copies[step - 1][name] for step in (12, 16, 20)]).mean(dim=0)
        torch.testing.assert_close(parameter.double(), expected, rtol=1e-6, atol=1e-7)
    for name, buffer in state.model.named_buffers():
        assert torch.equal(buffer.double(), copies[-1][name]), name


def test_the_exponential_average_follows_every_step_and_the_batch_statistics():
    state = tiny_state()
    average = WeightAverage(state.model, EMA, SCHEDULE)
    copies = train(state, average, 20)
    assert average.count == 16
    average.copy_to_model()
    for name, tensor in state.model.state_dict().items():
        expected = copies[4][name]
        for copy in copies[5:]:
            expected = 0.7 * expected + 0.3 * copy[name]
        if name.endswith("num_batches_tracked"):
            expected = copies[-1][name]
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("steps", [1, 6, 14])
@pytest.mark.parametrize("config", [UNIFORM, EMA])
def test_a_resumed_average_is_bit_for_bit_the_one_that_never_stopped(tmp_path, config, steps):
    def fresh():
        state = tiny_state()
        return state, WeightAverage(state.model, config, SCHEDULE)

    straight, expected = fresh()
    train(straight, expected, 20)
    stopped, average = fresh()
    train(stopped, average, steps)
    path = save_checkpoint(tmp_path, stopped, extra={})
    write_tensors(tmp_path / "average.safetensors", average.state_dict())
    resumed, average = fresh()
    load_checkpoint(path, resumed)
    average.load_state_dict(read_tensors(tmp_path / "average.safetensors"))
    train(resumed, average, 20 - steps)
    assert average.count == expected.count
    for one in (average, expected):
        one.copy_to_model()
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


def test_nothing_averaged_and_averages_of_other_models_are_refused():
    average = WeightAverage(TinyNetwork(), UNIFORM, SCHEDULE)
    with pytest.raises(ValueError, match="first come at epoch 3"):
        average.copy_to_model()
    other = WeightAverage(TinyNetwork(channels=4), UNIFORM, SCHEDULE)
    other.after_step(12)
    with pytest.raises(ValueError, match="average of another model.*camera.weight"):
        average.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="lacks its 'count'"):
        average.load_state_dict({})
    assert average.count == 0


@pytest.mark.parametrize(
    "wrong", [{"kind": "swa"}, {"start_epoch": -1}, {"decay": 1.0}, {"decay": 0.0}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AverageConfig(**wrong)


def batch_norm_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.BatchNorm1d(6))


@pytest.mark.parametrize("training", [True, False])
def test_batch_statistics_become_the_mean_over_the_batches(training):
    model = batch_norm_network().train(training)
    model[1].running_mean.fill_(7.0)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    batches = [{"x": torch.randn(8, 4) + 3} for _ in range(5)]
    seen = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    modes = []
    model[2].register_forward_hook(lambda module, args, output: modes.append(module.training))

    estimate_batch_norms(model, iter(batches), lambda batch: model(batch["x"]))

    assert len(seen) == 5
    assert modes == [True] * 5
    mean = torch.stack([x.mean(dim=0) for x in seen]).mean(dim=0)
    variance = torch.stack([x.var(dim=0) for x in seen]).mean(dim=0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert not any(x.requires_grad for x in seen)
    assert [model[i].momentum for i in (1, 3)] == [0.1, 0.1]
    assert [module.training for module in model] == [training] * 4
    assert all(torch.equal(weights[name], p) for name, p in model.named_parameters())


def test_without_a_batch_the_statistics_stay():
    model = batch_norm_network()
    model[1].running_mean.fill_(7.0)
    with pytest.raises(ValueError, match="without a batch"):
        estimate_batch_norms(model, [], model)
    assert (model[1].running_mean == 7.0).all()


def test_an_averaged_network_needs_its_own_statistics():
    """The mean of weights that oscillate has activations that no member's statistics describe."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    average = WeightAverage(
        model, AverageConfig(start_epoch=1), ScheduleConfig(epochs=2, steps_per_epoch=1)
    )
    images = torch.linspace(1, 3, 64)[:, None]
    for step, weight in ((1, 3.0), (2, -1.0)):
        nn.init.constant_(model[0].weight, weight)
        model[1].momentum = None
        model[1].reset_running_stats()
        model(images)
        average.after_step(step)
    average.copy_to_model()
    assert model[0].weight.item() == 1.0
    assert abs(model.eval()(images).mean().item()) > 1
    estimate_batch_norms(model, [{"x": images}], lambda batch: model(batch["x"]))
    assert model(images).mean().item() == pytest.approx(0.0, abs=1e-5)
    assert math.isclose(model(images).std().item(), 1.0, rel_tol=1e-3)
