"""One training step.

Everything random in it follows from (seed, step, rank): a run that is resumed at step N goes on as
if it had never stopped. Pixels follow from (seed, step, position) alone, so that they do not
depend on how many workers there are.

Shapes: B batch of this worker, C channels, H height, W width.
"""

from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.counter_random import generator_seed
from pipelines.engine.averaging import estimate_batch_norms
from pipelines.engine.erasing import apply_erasing, erase_boxes
from pipelines.engine.inputs import to_device, to_model_input
from pipelines.engine.metrics import StepMetrics
from pipelines.engine.optimizer import set_learning_rates, set_trainable
from pipelines.engine.state import TrainState
from reid_models.output import ReidOutput

Batch = Mapping[str, Tensor | NDArray[Any]]


def train_step(state: TrainState, batch: Batch, *, rank: int = 0) -> StepMetrics:
    """Forward, backward and update on this worker's part of the global batch of `state.step`.

    The step itself never waits for the device. `.floats()` reads its result: `loss`, its parts as
    `loss/NAME`, `accuracy` of the model's first head, `lr` of the weights and `images`.

    Args:
        state: moved on by one step.
        batch: tensors or arrays: `image` uint8 [B, H, W, C], `label` and `camera` int64 [B], and
            `position` int64 [B], the images' places in the global batch, in host memory.
        rank: the worker's number; dropout differs from rank to rank.

    Raises:
        DivergedError: if the loss is not finite, before the update; on a GPU the loss of the step
            before, so as not to wait for this one.
    """
    lr = set_learning_rates(state.optimizer, state.schedule, state.step)
    if state.trainable is not None:
        epoch = state.step // state.schedule.steps_per_epoch
        set_trainable(state.model, state.trainable(epoch))
    output = forward_pass(state, batch, state.step, rank)
    labels_B = to_device(_tensor(batch["label"]), state.device)
    loss, parts = state.loss(output, labels_B)
    values = {f"loss/{name}": part for name, part in parts.items()}
    values = {"loss": loss, **values, "accuracy": _accuracy(output, labels_B)}
    metrics = StepMetrics(step=state.step, lr=lr, images=len(labels_B), values=values)
    state.watch(metrics)

    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if state.grad_clip is not None:
        nn.utils.clip_grad_norm_(state.model.parameters(), state.grad_clip)
    state.optimizer.step()
    state.step += 1
    if state.average is not None:
        state.average.after_step(state.step)
    return metrics


def forward_pass(state: TrainState, batch: Batch, step: int, rank: int) -> ReidOutput:
    """What the model makes of this worker's part of the global batch of a step, in training
    mode; everything drawn follows from (seed, step, rank)."""
    torch.manual_seed(generator_seed("step", state.seed, step, rank))
    device = state.device
    images_BCHW = _pixels(state, batch, step)
    cameras_B = to_device(_tensor(batch["camera"]), device)
    state.model.train()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=state.precision == "bf16"):
        output: ReidOutput = state.model(images_BCHW, cameras_B)
    return output


def finish_average(state: TrainState, batches: Iterable[Batch], *, rank: int = 0) -> None:
    """Replace the trained weights by their average.

    The batch norms of a uniform average are estimated over the batches, which are those of the
    steps after the last; the state stays at its step, and takes none after this. Among several
    workers the statistics are those of rank 0's share of the batches: DistributedDataParallel hands
    its buffers to the others, as in training.

    Raises:
        ValueError: nothing was averaged, or there is no batch to estimate with.
    """
    if state.average is None:
        raise ValueError("this training keeps no average")
    state.average.copy_to_model()
    if state.average.config.kind == "uniform":
        steps = count(state.step)
        estimate_batch_norms(
            state.model, batches, lambda batch: forward_pass(state, batch, next(steps), rank)
        )


def _tensor(values: Tensor | NDArray[Any]) -> Tensor:
    if isinstance(values, Tensor):
        return values
    # Ray hands out read-only arrays, which torch does not take
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _pixels(state: TrainState, batch: Batch, step: int) -> Tensor:
    images_BCHW = to_model_input(
        _tensor(batch["image"]), mean=state.mean, std=state.std, device=state.device
    )
    if state.erasing is None:
        return images_BCHW
    positions_B = np.asarray(batch["position"], dtype=np.int64)
    boxes_B4 = erase_boxes(
        state.seed,
        step,
        positions_B,
        images_BCHW.shape[2],
        images_BCHW.shape[3],
        probability=state.erasing.probability,
        area=state.erasing.area,
        aspect=state.erasing.aspect,
    )
    return apply_erasing(images_BCHW, boxes_B4, state.seed, step, positions_B)


def _accuracy(output: ReidOutput, labels_B: Tensor) -> Tensor:
    logits_BC = next(iter(output.logits.values())).detach()
    return (logits_BC.argmax(dim=1) == labels_B).float().mean()
