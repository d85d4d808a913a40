"""Axes that make sense for every system. They scale with the recipe, so one definition serves
short and long runs."""

from typing import Any

from ray import tune

Space = dict[str, Any]


def learning_rate(lr: float) -> Space:
    """The base rate, from a third to three times the recipe's, even on a log scale."""
    return {"optim.lr": tune.loguniform(lr / 3, lr * 3)}


def warmup(epochs: int, lr: float) -> Space:
    """Length of the warm-up, up to a third of the run, and the rate it starts from, a hundredth to
    a third of the base rate."""
    return {
        "schedule.warmup_epochs": tune.uniform(0.0, epochs / 3),
        "schedule.warmup_start_lr": tune.loguniform(lr / 100, lr / 3),
    }
