"""What a training step measured, without waiting for the device to have measured it.

Reading a number from a GPU waits for everything queued before it. So a step starts copying its few
numbers to the host and hands out this object; whoever wants them asks, every tenth step say, and
only then waits.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipelines.errors import UserError


class DivergedError(UserError):
    """The loss or the weights are no longer finite numbers."""


class StepMetrics:
    """The numbers of one step, on their way to the host."""

    def __init__(self, *, step: int, lr: float, images: int, values: Mapping[str, Tensor]) -> None:
        """Start the copy.

        Args:
            step: the step, counted from 0.
            lr: the rate of the weights at this step.
            images: images that this worker saw at this step.
            values: scalar tensors on one device; among them "loss", and its parts as "loss/NAME".
        """
        self.step = step
        self.lr = lr
        self.images = images
        self._names = tuple(values)
        on_device = torch.stack([value.detach().to(torch.float32) for value in values.values()])
        self._arrived: torch.cuda.Event | None = None
        if on_device.device.type == "cuda":
            self._values = torch.empty_like(on_device, device="cpu", pin_memory=True)
            self._values.copy_(on_device, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._values = on_device

    def floats(self) -> dict[str, float]:
        """The measured values by name, with `lr` and `images`. Waits for this step only."""
        if self._arrived is not None:
            self._arrived.synchronize()
        measured = dict(zip(self._names, self._values.tolist(), strict=True))
        return {**measured, "lr": self.lr, "images": float(self.images)}

    def require_finite(self) -> None:
        """Raise `DivergedError` with step, rate and the loss's parts if a loss is not finite."""
        losses = {name: x for name, x in self.floats().items() if name.startswith("loss")}
        if not all(map(math.isfinite, losses.values())):
            shown = ", ".join(f"{name} {value:.6g}" for name, value in losses.items())
            raise DivergedError(
                f"training diverged at step {self.step}: {shown} at learning rate {self.lr:.3g}; "
                "lower optim.lr, lengthen schedule.warmup_epochs or set optim.grad_clip"
            )
