"""The learning rate as a pure function of the step.

Epochs e are counted from 1 to E. `b` is the base rate of a group of parameters; `w`, the rate at
epoch 0, and `m`, the last of the cosine, are the same for every parameter.

    e < W             w + e (b - w) / W                                    linear warm-up
    "cosine", e >= W  m + (b - m) (1 + cos(pi (e - s) / (T - s))) / 2      s is 0 or W
    "step", e >= W    b g^(1 + floor((e - 1) / n))                         decays from the start

From epoch S on, if one is given, the rate stays what it is at S. FusionReID and PAT have s = 0: the
warm-up does not shift the cosine. LEViT has s = W, and S for its weight averaging. LA-Transformer
decays in steps, the first of them before its first epoch.
"""

import math
from dataclasses import dataclass
from typing import Literal

Shape = Literal["cosine", "step"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The shape of the learning rate over the training."""

    epochs: int
    """E, length of the training in epochs."""
    steps_per_epoch: int
    """Steps an epoch."""
    shape: Shape = "cosine"
    """What follows the warm-up."""
    warmup_epochs: float = 10
    """W, length of the warm-up in epochs; 0 for none."""
    warmup_start_lr: float = 5e-5
    """w, the rate that the warm-up starts from at epoch 0."""
    min_lr: float = 1e-5
    """m, the rate where the cosine ends."""
    cosine_epochs: float | None = None
    """T, the epoch where the cosine ends; None for E."""
    cosine_after_warmup: bool = False
    """Whether the cosine begins where the warm-up ends (s = W), else at epoch 0 (s = 0)."""
    decay_factor: float = 0.8
    """g, what each step of "step" multiplies the rate with."""
    decay_epochs: float = 2
    """n, epochs between two steps of "step"."""
    hold_epoch: float | None = None
    """S, the epoch from which on the rate is held; None for never."""
    granularity: Literal["epoch", "step"] = "epoch"
    """Whether the rate changes at the start of an epoch or at every step."""

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.steps_per_epoch < 1:
            raise ValueError(
                f"epochs and steps_per_epoch are at least 1, got {self.epochs} and "
                f"{self.steps_per_epoch}"
            )
        for name in ("warmup_epochs", "warmup_start_lr", "min_lr"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is not negative, got {getattr(self, name)}")
        if self.shape not in ("cosine", "step"):
            raise ValueError(f"shape is 'cosine' or 'step', got {self.shape!r}")
        if self.granularity not in ("epoch", "step"):
            raise ValueError(f"granularity is 'epoch' or 'step', got {self.granularity!r}")
        if not 0 < self.decay_factor <= 1 or self.decay_epochs <= 0:
            raise ValueError(
                f"decay_factor lies in (0, 1] and decay_epochs above 0, got {self.decay_factor} "
                f"and {self.decay_epochs}"
            )
        if self.hold_epoch is not None and self.hold_epoch < self.warmup_epochs:
            raise ValueError(
                f"hold_epoch is not below warmup_epochs={self.warmup_epochs}, got {self.hold_epoch}"
            )
        if self.hold_epoch is not None and self.hold_epoch > self.epochs:
            raise ValueError(
                f"hold_epoch={self.hold_epoch} lies behind the last epoch, {self.epochs}"
            )
        if self.shape == "cosine":
            self._check_cosine()

    def _check_cosine(self) -> None:
        last = self.epochs if self.hold_epoch is None else min(self.epochs, self.hold_epoch)
        if self.cosine_end < last:
            raise ValueError(
                f"cosine_epochs={self.cosine_end}, where the cosine ends, is before epoch {last}; "
                "lengthen it, or set hold_epoch"
            )
        if self.cosine_after_warmup and self.cosine_end <= self.warmup_epochs:
            raise ValueError(
                f"cosine_epochs={self.cosine_end} leaves no cosine behind "
                f"warmup_epochs={self.warmup_epochs}"
            )

    @property
    def cosine_end(self) -> float:
        """T."""
        return self.epochs if self.cosine_epochs is None else self.cosine_epochs

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
        ValueError: for an epoch outside the training.
    """
    if not 0 <= epoch <= config.epochs:
        raise ValueError(f"epoch {epoch} lies outside the schedule's 0..{config.epochs}")
    if config.hold_epoch is not None:
        epoch = min(epoch, config.hold_epoch)
    if epoch < config.warmup_epochs:
        share = epoch / config.warmup_epochs
        return config.warmup_start_lr + share * (base_lr - config.warmup_start_lr)
    if config.shape == "step":
        begun = max(1, math.ceil(epoch))  # within the e-th epoch, by step, e is not reached yet
        return base_lr * config.decay_factor ** (1 + (begun - 1) // config.decay_epochs)
    start = config.warmup_epochs if config.cosine_after_warmup else 0.0
    cosine = math.cos(math.pi * (epoch - start) / (config.cosine_end - start))
    return config.min_lr + 0.5 * (base_lr - config.min_lr) * (1 + cosine)
