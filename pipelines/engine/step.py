"""One training step.

Everything random in it follows from (seed, step, rank): a run that is resumed at step N goes on as
if it had never stopped. Pixels follow from (seed, step, position) alone, so that they do not
depend on how many workers there are.

Shapes: B batch of this worker, C channels, H height, W width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines.counter_random import generator_seed
from pipelines.engine.erasing import apply_erasing, erase_boxes
from pipelines.engine.inputs import to_device, to_model_input
from pipelines.engine.metrics import StepMetrics
from pipelines.engine.optimizer import set_learning_rates
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
    torch.manual_seed(generator_seed("step", state.seed, state.step, rank))
    lr = set_learning_rates(state.optimizer, state.schedule, state.step)
    device = state.device
    images_BCHW = _pixels(state, batch)
    labels_B = to_device(_tensor(batch["label"]), device)
    cameras_B = to_device(_tensor(batch["camera"]), device)

    state.model.train()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=state.precision == "bf16"):
        output = state.model(images_BCHW, cameras_B)
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
    return metrics


def _tensor(values: Tensor | NDArray[Any]) -> Tensor:
    if isinstance(values, Tensor):
        return values
    # Ray hands out read-only arrays, which torch does not take
    return torch.from_numpy(values if values.flags.writeable else values.copy())


def _pixels(state: TrainState, batch: Batch) -> Tensor:
    images_BCHW = to_model_input(
        _tensor(batch["image"]), mean=state.mean, std=state.std, device=state.device
    )
    if state.erasing is None:
        return images_BCHW
    positions_B = np.asarray(batch["position"], dtype=np.int64)
    boxes_B4 = erase_boxes(
        state.seed,
        state.step,
        positions_B,
        images_BCHW.shape[2],
        images_BCHW.shape[3],
        probability=state.erasing.probability,
        area=state.erasing.area,
        aspect=state.erasing.aspect,
    )
    return apply_erasing(images_BCHW, boxes_B4, state.seed, state.step, positions_B)


def _accuracy(output: ReidOutput, labels_B: Tensor) -> Tensor:
    logits_BC = next(iter(output.logits.values())).detach()
    return (logits_BC.argmax(dim=1) == labels_B).float().mean()
