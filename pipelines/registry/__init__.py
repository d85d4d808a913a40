"""Runs, model versions and the champion, kept in MLflow.

`Tracker` writes runs; `register_model`, `promote` and `rollback` move model versions. Everything
goes through `MlflowClient` with explicit run ids: the fluent API keeps process-wide state that
worker processes and nested runs would trip over. One process, the driver, writes. MLflow itself is
imported only when a `Tracker` is opened.
"""

from pipelines.registry.promotion import (
    PromotionRefusedError,
    PromotionResult,
    aliases,
    promote,
    rollback,
    rolled_back,
)
from pipelines.registry.registration import register_model
from pipelines.registry.tracker import Tracker

__all__ = [
    "PromotionRefusedError",
    "PromotionResult",
    "Tracker",
    "aliases",
    "promote",
    "register_model",
    "rollback",
    "rolled_back",
]
