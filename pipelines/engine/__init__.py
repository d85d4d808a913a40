"""The training engine in plain torch: inputs, schedule, optimiser, step, averages and
checkpoints."""

from pipelines.engine.averaging import AverageConfig, WeightAverage
from pipelines.engine.checkpoint import (
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    verify_checkpoint,
)
from pipelines.engine.erasing import ErasingConfig
from pipelines.engine.inputs import to_model_input
from pipelines.engine.metrics import DivergedError, StepMetrics
from pipelines.engine.optimizer import build_optimizer, freeze
from pipelines.engine.schedule import ScheduleConfig, learning_rate
from pipelines.engine.state import TrainState
from pipelines.engine.step import finish_average, train_step
from pipelines.engine.weights import load_weights, save_weights

__all__ = [
    "AverageConfig",
    "DivergedError",
    "ErasingConfig",
    "ScheduleConfig",
    "StepMetrics",
    "TrainState",
    "WeightAverage",
    "build_optimizer",
    "finish_average",
    "freeze",
    "learning_rate",
    "load_checkpoint",
    "load_weights",
    "prune_checkpoints",
    "save_checkpoint",
    "save_weights",
    "to_model_input",
    "train_step",
    "verify_checkpoint",
]
