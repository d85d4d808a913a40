"""Averages, centers and late parts through the training step and its checkpoints."""

import json

import pytest
import torch

from pipelines.engine import (
    AverageConfig,
    WeightAverage,
    finish_average,
    load_checkpoint,
    save_checkpoint,
    train_step,
)
from pipelines.errors import UserError
from reid_models import LossTerm, ReidLoss
from tests.tiny_training import IDENTITIES, TinyNetwork, tiny_batch, tiny_state

LAYOUT = (LossTerm("first"), LossTerm("second", triplet_weight=0.5))


@pytest.fixture(autouse=True)
def one_thread():
    """Faster for so small a network, and the same sums to the last bit on any machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def state_of(kind="uniform", *, centers=True, average=True, **changes):
    loss = ReidLoss(LAYOUT, center_weight=0.01 if centers else 0.0, num_classes=IDENTITIES)
    state = tiny_state(loss=loss, lr=0.01, **changes)
    if average:
        config = AverageConfig(kind=kind, start_epoch=3, decay=0.8)
        state.average = WeightAverage(state.model, config, state.schedule)
    return state


def run(state, steps):
    for _ in range(steps):
        train_step(state, tiny_batch(state.step))
    return state


def finished(state):
    finish_average(state, [tiny_batch(step) for step in range(state.step, state.step + 4)])
    return state.model.state_dict()


@pytest.mark.parametrize("kind", ["uniform", "ema"])
@pytest.mark.parametrize("steps", [7, 14, 20])
def test_a_resumed_run_leaves_the_same_average_bit_for_bit(tmp_path, kind, steps):
    expected = finished(run(state_of(kind), 20))
    path = save_checkpoint(tmp_path, run(state_of(kind), steps), extra={})
    resumed = state_of(kind, model=TinyNetwork())
    load_checkpoint(path, resumed)
    actual = finished(run(resumed, 20 - steps))
    assert all(torch.equal(tensor, actual[name]) for name, tensor in expected.items())
    assert resumed.step == 20


def test_only_a_training_that_has_companions_writes_their_file(tmp_path):
    plain = save_checkpoint(tmp_path / "a", run(tiny_state(), 1), extra={})
    with_both = save_checkpoint(tmp_path / "b", run(state_of(), 13), extra={})
    files = [json.loads((path / "state.json").read_text())["files"] for path in (plain, with_both)]
    assert set(files[1]) - set(files[0]) == {"companions.safetensors"}
    with pytest.raises(UserError, match="average of another training.*'count'"):
        load_checkpoint(plain, state_of(centers=False))
    with pytest.raises(UserError, match="loss of another training"):
        load_checkpoint(with_both, state_of(centers=False))
    with pytest.raises(UserError, match="has average, which this training has not"):
        load_checkpoint(with_both, state_of(average=False))


def test_a_finished_uniform_average_has_statistics_of_its_own():
    state = run(state_of(), 20)
    before = {name: tensor.clone() for name, tensor in state.model.state_dict().items()}
    after = finished(state)
    for name in ("convolution.weight", "norm.running_mean", "necks.first.running_var"):
        assert not torch.equal(before[name], after[name]), name
    assert after["norm.num_batches_tracked"] == 4
    with pytest.raises(ValueError, match="keeps no average"):
        finish_average(run(state_of(average=False), 1), [])


def test_late_parts_move_from_their_epoch_on():
    def trainable(epoch):
        return {n for n in names if epoch >= 2 or not n.startswith("convolution")}

    state = tiny_state(trainable=trainable)
    names = {name for name, _ in state.model.named_parameters()}
    first = state.model.convolution.weight.detach().clone()
    run(state, 8)
    assert torch.equal(state.model.convolution.weight, first)
    run(state, 1)
    assert not torch.equal(state.model.convolution.weight, first)
