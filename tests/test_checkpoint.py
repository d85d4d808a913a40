import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from pipelines.checkpoints import latest_checkpoint, list_checkpoints
from pipelines.engine import (
    DivergedError,
    load_checkpoint,
    load_weights,
    prune_checkpoints,
    save_checkpoint,
    save_weights,
    train_step,
)
from pipelines.errors import UserError
from tests.tiny_training import TinyNetwork, tiny_batch, tiny_state

ROOT = Path(__file__).parents[1]


def run(state, steps):
    for _ in range(steps):
        train_step(state, tiny_batch(state.step))
    return state


def contents(state):
    """Everything of model and optimiser, in an order and form that compare exactly."""
    optimizer = state.optimizer.state_dict()
    tensors = dict(state.model.state_dict())
    for index, slots in optimizer["state"].items():
        tensors |= {f"{index}/{slot}": value for slot, value in slots.items() if value is not None}
    return tensors, optimizer["param_groups"]


def assert_identical(one, other):
    (tensors, groups), (other_tensors, other_groups) = contents(one), contents(other)
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, other_tensors[name]), name
        assert tensor.dtype == other_tensors[name].dtype
    assert groups == other_groups
    assert one.step == other.step


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_resumed_run_is_bit_for_bit_the_run_that_never_stopped(tmp_path, optimizer, precision):
    settings = {"optimizer": optimizer, "precision": precision, "lr": 0.01, "grad_clip": 1.0}
    straight = run(tiny_state(**settings), 8)
    path = save_checkpoint(tmp_path, run(tiny_state(**settings), 5), extra={"epoch": 1.25})
    torch.manual_seed(1234)
    resumed = tiny_state(model=TinyNetwork(), **settings)
    assert load_checkpoint(path, resumed) == {"epoch": 1.25}
    assert resumed.step == 5
    assert_identical(run(resumed, 3), straight)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("steps", [2, 4, 6])
def test_parameters_that_open_later_have_no_state_before_and_resume_alike(
    tmp_path, optimizer, steps
):
    """The convolution opens at step 4, epoch 1."""
    names = {name for name, _ in TinyNetwork().named_parameters()}

    def trainable(epoch):
        return {name for name in names if epoch or not name.startswith("convolution")}

    settings = {"optimizer": optimizer, "lr": 0.01, "grad_clip": 0.5, "trainable": trainable}
    straight = run(tiny_state(**settings), 8)
    path = save_checkpoint(tmp_path, run(tiny_state(**settings), steps), extra={})
    saved = safetensors.torch.load_file(path / "optimizer.safetensors")
    assert any(name.endswith("/convolution.weight") for name in saved) == (steps > 4)
    resumed = tiny_state(model=TinyNetwork(), **settings)
    load_checkpoint(path, resumed)
    assert_identical(run(resumed, 8 - steps), straight)


def test_a_checkpoint_of_step_zero_holds_the_first_weights(tmp_path):
    path = save_checkpoint(tmp_path, tiny_state(optimizer="adamw"), extra={})
    torch.manual_seed(5)
    resumed = tiny_state(optimizer="adamw", model=TinyNetwork())
    load_checkpoint(path, resumed)
    assert_identical(resumed, tiny_state(optimizer="adamw"))


def test_the_folder_holds_named_tensors_and_no_pickle(tmp_path):
    path = save_checkpoint(tmp_path, run(tiny_state(), 2), extra={"note": "ü"})
    assert path == tmp_path / "step-000002"
    files = {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert {file.name for file in path.iterdir()} == files
    assert [file.name for file in tmp_path.iterdir()] == ["step-000002"]
    tensors = safetensors.torch.load_file(path / "optimizer.safetensors")
    assert "momentum_buffer/classifiers.first.weight" in tensors
    content = json.loads((path / "state.json").read_text())
    assert content["step"] == 2
    assert content["extra"] == {"note": "ü"}
    assert content["versions"]["torch"] == torch.__version__.split("+")[0]
    assert set(content["files"]) == files - {"state.json"}


@pytest.fixture(autouse=True)
def one_thread():
    """Sums differ in their last bits with the number of threads; child processes use one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


KILLER = """
import os, signal, sys
import torch
from pathlib import Path
from pipelines.engine import save_checkpoint, train_step
from tests.tiny_training import tiny_batch, tiny_state

torch.set_num_threads(1)
root = Path(sys.argv[1])
state = tiny_state()
for point in range(1, 6):
    save_checkpoint(root / str(point), state, extra={})
train_step(state, tiny_batch(0))
fsync = os.fsync
for point in range(1, 6):
    if os.fork() == 0:
        calls = 0
        def deadly(descriptor):
            global calls
            calls += 1
            if calls == point:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)
        os.fsync = deadly
        save_checkpoint(root / str(point), state, extra={})
    assert os.waitstatus_to_exitcode(os.wait()[1]) == -signal.SIGKILL
"""


def test_kill_while_saving_leaves_the_previous_checkpoint_whole(tmp_path):
    """Killed as it is about to wait for the disk: after the model's file, the optimiser's,
    `state.json`, the folder (all still under the temporary name), and after the rename."""
    subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    for point, expected in [(1, 0), (2, 0), (3, 0), (4, 0), (5, 1)]:
        root = tmp_path / str(point)
        leftovers = [path for path in root.iterdir() if ".tmp-" in path.name]
        assert len(leftovers) == (point < 5)
        state = tiny_state()
        load_checkpoint(latest_checkpoint(root), state)
        assert state.step == expected
        assert_identical(state, run(tiny_state(), expected))
        save_checkpoint(root, run(state, 2), extra={})
        names = {path.name for path in root.iterdir()}
        assert names == {f"step-{s:06d}" for s in range(expected + 1)} | {f"step-{state.step:06d}"}


def test_a_save_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, tiny_state(), extra={"not json": object()})
    assert list(tmp_path.iterdir()) == []


def test_saving_the_same_step_again_replaces_it(tmp_path):
    state = run(tiny_state(), 1)
    save_checkpoint(tmp_path, state, extra={"try": 1})
    path = save_checkpoint(tmp_path, state, extra={"try": 2})
    assert load_checkpoint(path, tiny_state()) == {"try": 2}
    assert list(tmp_path.iterdir()) == [path]


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    state = run(tiny_state(), 1)
    with torch.no_grad():
        state.model.convolution.weight[0] = float("inf")
    with pytest.raises(DivergedError, match="before step 1"):
        save_checkpoint(tmp_path / "run", state, extra={})
    assert not (tmp_path / "run").exists()


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_last_bit(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("earlier", [None, 3])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", [Path.unlink, cut, flip_last_bit])
def test_a_damaged_checkpoint_names_the_file_and_what_to_do(tmp_path, damage, name, earlier):
    state = tiny_state()
    if earlier:
        save_checkpoint(tmp_path, run(state, earlier), extra={})
    path = save_checkpoint(tmp_path, run(state, 1), extra={})
    damage(path / name)
    with pytest.raises(UserError) as error:
        load_checkpoint(path, tiny_state())
    message = str(error.value)
    assert str(path / name) in message
    start = "step 3" if earlier else "the start"
    assert message.endswith(f"delete the folder {path} to go on from {start}")
    assert "\n" not in message


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 99}', '{"format": 1, "step": 2}'])
def test_a_state_file_of_something_else_is_refused(tmp_path, text):
    path = save_checkpoint(tmp_path, tiny_state(), extra={})
    (path / "state.json").write_text(text)
    with pytest.raises(UserError, match=r"state\.json"):
        load_checkpoint(path, tiny_state())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 8}, "seed 3, not 8"),
        ({"optimizer": "adamw"}, "SGD, not AdamW"),
        ({"model": TinyNetwork(channels=4)}, r"is \[8.*the model's is \[4"),
        ({"model": nn.Linear(2, 2)}, "lacks bias, weight.*unknown camera.weight"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, changes, message):
    path = save_checkpoint(tmp_path, run(tiny_state(), 1), extra={})
    with pytest.raises(UserError, match=message):
        load_checkpoint(path, tiny_state(**changes))


def test_frozen_parameters_that_were_trained_before_are_noticed(tmp_path):
    path = save_checkpoint(tmp_path, run(tiny_state(), 1), extra={})
    model = TinyNetwork()
    model.convolution.requires_grad_(False)
    with pytest.raises(UserError, match="other groups"):
        load_checkpoint(path, tiny_state(model=model))


def test_listing_pruning_and_leftovers(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None
    assert latest_checkpoint(tmp_path) is None
    state = tiny_state()
    for step in (5, 40, 999_999, 1_000_000):
        state.step = step
        save_checkpoint(tmp_path, state, extra={})
    (tmp_path / "step-2000000.tmp-abc").mkdir()
    (tmp_path / "step-abc").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert [step for step, _ in list_checkpoints(tmp_path)] == [5, 40, 999_999, 1_000_000]
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1000000"
    prune_checkpoints(tmp_path, keep=2)
    left = {"step-999999", "step-1000000", "step-abc", "notes.txt"}
    assert {path.name for path in tmp_path.iterdir()} == left
    with pytest.raises(ValueError, match="keep"):
        prune_checkpoints(tmp_path, keep=0)


def test_weights_go_to_one_file_and_back(tmp_path):
    model = run(tiny_state(), 2).model
    path = tmp_path / "weights.safetensors"
    path.write_text("an older file")
    save_weights(path, model)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]
    other = TinyNetwork()
    load_weights(path, other)
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.state_dict().items())


def test_tensors_that_share_memory_or_lie_channels_last_are_written(tmp_path):
    first = nn.Conv2d(3, 4, 3)
    model = nn.Sequential(first, nn.ReLU(), first).to(memory_format=torch.channels_last)
    save_weights(tmp_path / "w.safetensors", model)
    again = nn.Conv2d(3, 4, 3)
    loaded = nn.Sequential(again, nn.ReLU(), again)
    load_weights(tmp_path / "w.safetensors", loaded)
    assert torch.equal(loaded[0].weight, first.weight)


@pytest.mark.parametrize("damage", [Path.unlink, cut, lambda file: file.write_bytes(b"")])
def test_a_damaged_weights_file_is_refused_and_named(tmp_path, damage):
    path = tmp_path / "weights.safetensors"
    save_weights(path, TinyNetwork())
    damage(path)
    with pytest.raises(UserError, match=str(path)):
        load_weights(path, TinyNetwork())


def test_weights_of_another_model_change_nothing(tmp_path):
    path = tmp_path / "weights.safetensors"
    tensors = TinyNetwork().state_dict()
    del tensors["convolution.bias"]
    tensors["surplus"] = torch.zeros(1)
    safetensors.torch.save_file(tensors, path)
    model = TinyNetwork()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"lacks convolution\.bias; has unknown surplus"):
        load_weights(path, model)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
