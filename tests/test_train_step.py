import math
import warnings

import numpy as np
import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from pipelines.engine import DivergedError, ErasingConfig, to_model_input, train_step
from tests.tiny_training import TinyNetwork, tiny_batch, tiny_loss, tiny_state


def weights_of(state):
    return {name: tensor.clone() for name, tensor in state.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run(state, steps, rank=0):
    return [train_step(state, tiny_batch(state.step), rank=rank).floats() for _ in range(steps)]


def test_model_input_is_the_formula_in_channels_last_memory():
    images = torch.randint(0, 256, (3, 5, 4, 3), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    result = to_model_input(images, mean=mean, std=std)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    expected = torch.empty(3, 3, 5, 4)
    for channel in range(3):
        values = images[..., channel].double() / 255
        expected[:, channel] = (values - mean[channel]) / std[channel]
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 4, 4, 3),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
    ],
)
def test_model_input_refuses_other_dtypes_and_layouts(images):
    with pytest.raises(ValueError, match="images"):
        to_model_input(images, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_network_learns(precision):
    state = tiny_state(precision=precision)
    metrics = run(state, 20)
    assert state.step == 20
    assert metrics[-1]["loss"] < 0.8 * metrics[0]["loss"]
    assert metrics[-1]["accuracy"] > 0.6
    assert all(math.isfinite(value) for step in metrics for value in step.values())
    assert {tensor.dtype for tensor in state.model.parameters()} == {torch.float32}


def test_metrics_are_the_loss_its_parts_the_rate_and_the_images():
    state = tiny_state()
    first, fifth = run(state, 5)[0::4]
    assert set(first) == {"loss", "loss/id", "loss/size", "accuracy", "lr", "images"}
    assert first["loss"] == pytest.approx(first["loss/id"] + first["loss/size"])
    assert first["images"] == 16
    assert [first["lr"], fifth["lr"]] == pytest.approx(
        [1e-4 + 0.5 * (0.05 - 1e-4) * (1 + math.cos(math.pi * e / 5)) for e in (1, 2)]
    )


def test_bf16_reaches_the_forward_pass_and_the_loss_stays_fp32():
    seen = []

    def loss(output, labels_B):
        total, parts = tiny_loss(output, labels_B)
        seen.append((output.logits["first"].dtype, total.dtype))
        return total, parts

    full, reduced = [run(tiny_state(precision=p, loss=loss), 1)[0] for p in ("fp32", "bf16")]
    assert seen == [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)]
    assert reduced["loss"] == pytest.approx(full["loss"], rel=0.05)
    assert reduced["loss"] != full["loss"]


def test_a_step_is_a_pure_function_of_state_batch_seed_and_rank():
    def after_one_step(rank=0, erasing=None, **changes):
        state = tiny_state(erasing=erasing, **changes)
        torch.manual_seed(99)  # whatever was drawn before does not matter
        train_step(state, tiny_batch(0), rank=rank)
        return weights_of(state)

    reference = after_one_step()
    assert same(after_one_step(), reference)
    for change in ({"rank": 1}, {"seed": 4}, {"step": 1}, {"erasing": ErasingConfig()}):
        assert not same(after_one_step(**change), reference), change


def test_gradient_clipping_bounds_the_update():
    def update(grad_clip):
        state = tiny_state(grad_clip=grad_clip)
        for group in state.optimizer.param_groups:
            group["weight_decay"] = 0.0
            group["base_lr"] = 0.05
        before = weights_of(state)
        lr = run(state, 1)[0]["lr"]
        moved = [p.detach() - before[name] for name, p in state.model.named_parameters()]
        return float(torch.cat([x.flatten() for x in moved]).norm()) / lr

    assert update(1e-3) == pytest.approx(1e-3, rel=1e-3)
    assert update(None) > 0.1


def test_a_diverged_loss_stops_before_the_update_and_names_step_rate_and_parts():
    def loss(output, labels_B):
        total, parts = tiny_loss(output, labels_B)
        return total + parts["size"].log().log(), {**parts, "broken": parts["size"].log().log()}

    state = tiny_state()
    run(state, 3)
    state.loss = loss
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    with pytest.raises(DivergedError, match=r"step 3: loss nan, loss/id \d.*loss/broken nan") as e:
        run(state, 1)
    assert "learning rate 0.0452" in str(e.value)
    assert "grad_clip" in str(e.value)
    assert same(before, dict(state.model.named_parameters()))


def test_a_learning_rate_too_large_is_noticed():
    with pytest.raises(DivergedError, match="diverged at step"):
        run(tiny_state(lr=1e30), 5)


def test_takes_tensors_and_the_read_only_arrays_of_ray():
    frozen, tensors = tiny_batch(0), {k: torch.from_numpy(v) for k, v in tiny_batch(0).items()}
    for array in frozen.values():
        array.flags.writeable = False
    states = []
    for batch in (tiny_batch(0), frozen, tensors):
        state = tiny_state()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train_step(state, batch)
        states.append(weights_of(state))
    assert same(states[0], states[1])
    assert same(states[0], states[2])
    assert np.array_equal(frozen["image"], tiny_batch(0)["image"])


def test_distributed_training_of_one_worker_is_plain_training(tmp_path):
    plain = tiny_state()
    run(plain, 3)
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        torch.manual_seed(0)
        state = tiny_state(model=DistributedDataParallel(TinyNetwork()))
        run(state, 3)
        assert same(weights_of(plain), state.model.module.state_dict())
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("wrong", [{"precision": "fp16"}, {"grad_clip": 0.0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        tiny_state(**wrong)
