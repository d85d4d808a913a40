"""Everything that a training run consists of between two steps.

Shapes: B batch, C channels, H height, W width.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn, optim

from pipelines.engine.averaging import WeightAverage
from pipelines.engine.erasing import ErasingConfig
from pipelines.engine.metrics import StepMetrics
from pipelines.engine.schedule import ScheduleConfig
from reid_models.output import ReidOutput

Precision = Literal["fp32", "bf16"]
LossFunction = Callable[[ReidOutput, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""(output, labels_B) -> (total, its parts by name), all scalar tensors, such as `ReidLoss`. It
computes in float32 whatever the forward pass did."""


class Stateful(Protocol):
    """What has tensors that the next step depends on."""

    def state_dict(self) -> dict[str, Any]:
        """The tensors by name."""

    def load_state_dict(self, tensors: Mapping[str, Any], /) -> object:
        """Take them back; raises ValueError or RuntimeError if they do not fit."""


@dataclass(kw_only=True)
class TrainState:
    """A run between two steps; `train_step` moves it on, a checkpoint brings it back."""

    model: nn.Module
    """Called with (images_BCHW, cameras_B), gives a `ReidOutput`; on its device, wrapped in
    DistributedDataParallel or not."""
    optimizer: optim.Optimizer
    """Of `build_optimizer`: every group has a `base_lr`."""
    schedule: ScheduleConfig
    """Learning rate over the steps."""
    loss: LossFunction
    """The loss of a batch."""
    seed: int
    """Seed of dropout, erasing and whatever else is drawn at a step."""
    mean: Sequence[float]
    """Mean of the pixel values in [0, 1], one a channel."""
    std: Sequence[float]
    """Standard deviation of the pixel values in [0, 1], one a channel."""
    erasing: ErasingConfig | None = None
    """Random erasing, if any."""
    average: WeightAverage | None = None
    """Of the model's weights, if they are averaged."""
    trainable: Callable[[int], Collection[str]] | None = None
    """Epoch, counted from 0 -> names of the parameters that train in it; None for all that the
    optimiser has."""
    precision: Precision = "fp32"
    """Arithmetic of the forward pass; losses, weights and updates are fp32 in both."""
    grad_clip: float | None = None
    """Largest norm of the whole gradient; None leaves it as it is."""
    step: int = 0
    """Steps taken, which is also the number of the next one."""
    _unchecked: deque[StepMetrics] = field(default_factory=deque, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is 'fp32' or 'bf16', got {self.precision!r}")
        if self.grad_clip is not None and self.grad_clip <= 0:
            raise ValueError(f"grad_clip is a positive norm or None, got {self.grad_clip}")

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    def companions(self) -> dict[str, Stateful]:
        """What a checkpoint holds beside the model and the optimiser."""
        found: dict[str, Stateful] = {}
        if isinstance(self.loss, nn.Module):
            found["loss"] = self.loss
        if self.average is not None:
            found["average"] = self.average
        return found

    def watch(self, metrics: StepMetrics) -> None:
        """Check the losses: this step's at once on a CPU, on a GPU the previous step's.

        The previous step's numbers have reached the host by the time this step's are queued, so
        that nothing waits; the price is one more step before a diverged run stops.
        """
        self._unchecked.append(metrics)
        allowed = 1 if self.device.type == "cuda" else 0
        while len(self._unchecked) > allowed:
            self._unchecked.popleft().require_finite()

    def require_finite(self) -> None:
        """Raise `DivergedError` if the loss of a step taken so far was not finite. Waits for it."""
        while self._unchecked:
            self._unchecked.popleft().require_finite()
