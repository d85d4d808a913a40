"""The learning rate as a pure function of the step.

FusionReID's schedule: a linear warm-up from `w` to the base rate `b`, then the cosine of the whole
training, which the warm-up does not shift:

    e <  warm-up:  w + e * (b - w) / warm-up
    e >= warm-up:  m + (b - m) * (1 + cos(pi * e / E)) / 2

with epochs e counted from 1 to E, and `w` and the final rate `m` the same for every parameter.
"""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The shape of the learning rate over the training."""

    epochs: int
    """E, length of the training in epochs."""
    steps_per_epoch: int
    """Steps an epoch."""
    warmup_epochs: float = 10
    """Length of the warm-up in epochs; 0 for none."""
    warmup_start_lr: float = 5e-5
    """w, the rate that the warm-up starts from at epoch 0."""
    min_lr: float = 1e-5
    """m, the rate at epoch E."""
    granularity: Literal["epoch", "step"] = "epoch"
    """Whether the rate changes at the start of an epoch or at every step."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.steps_per_epoch < 1:
            raise ValueError(
                f"epochs and steps_per_epoch are at least 1, got {self.epochs} and "
                f"{self.steps_per_epoch}"
            )
        if min(self.warmup_epochs, self.warmup_start_lr, self.min_lr) < 0:
            raise ValueError(
                f"warmup_epochs, warmup_start_lr and min_lr are not negative, got "
                f"{self.warmup_epochs}, {self.warmup_start_lr} and {self.min_lr}"
            )
        if self.granularity not in ("epoch", "step"):
            raise ValueError(f"granularity is 'epoch' or 'step', got {self.granularity!r}")

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch


def schedule_epoch(config: ScheduleConfig, step: int) -> float:
    """The epoch e whose rate the step (counted from 0) is taken with.

    By epoch: 1 in the first epoch, E in the last. By step: the epochs done once the step is taken.
    """
    if config.granularity == "epoch":
        return 1 + step // config.steps_per_epoch
    return (step + 1) / config.steps_per_epoch


def learning_rate(config: ScheduleConfig, base_lr: float, epoch: float) -> float:
    """The rate at an epoch in [0, E] of parameters whose base rate is `base_lr`.

    Raises:
        ValueError: for an epoch outside the training, where the cosine would rise again.
    """
    if not 0 <= epoch <= config.epochs:
        raise ValueError(f"epoch {epoch} lies outside the schedule's 0..{config.epochs}")
    if epoch < config.warmup_epochs:
        share = epoch / config.warmup_epochs
        return config.warmup_start_lr + share * (base_lr - config.warmup_start_lr)
    cosine = math.cos(math.pi * epoch / config.epochs)
    return config.min_lr + 0.5 * (base_lr - config.min_lr) * (1 + cosine)
