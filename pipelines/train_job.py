"""A training job, and the state that it starts from: network, loss, optimiser, schedule, averages.

Initial weights depend on the recipe's seed alone. What a recipe asks of a network that does not
have it is a `UserError` here, from `prepare` on, before any worker starts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import reid_models
from pipelines.blocks import Blocks
from pipelines.embedder import ModelCard
from pipelines.engine import (
    AverageConfig,
    ErasingConfig,
    ScheduleConfig,
    TrainState,
    WeightAverage,
    build_optimizer,
    freeze,
)
from pipelines.errors import UserError
from pipelines.recipe import Recipe
from pipelines.validation import HoldOut
from reid_models.la_units import UnfreezeSchedule, trainable_parameters
from reid_models.losses import ReidLoss, build_loss
from reid_models.model import ReidModel

Trainable = Callable[[int], frozenset[str]]
"""Epoch, counted from 0 -> names of the parameters that train in it."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """What the workers are told."""

    recipe: Recipe
    blocks: Blocks
    card: ModelCard
    run: Path
    """Folder of the run, on a filesystem that all workers share."""
    schedule: ScheduleConfig
    holdout: HoldOut | None
    report: bool
    """Whether validation figures go to `ray.train.report`, as a search needs them."""

    @property
    def checkpoint_steps(self) -> int:
        """Steps between checkpoints."""
        return max(1, round(self.recipe.train.checkpoint_epochs * self.schedule.steps_per_epoch))

    @property
    def estimation_steps(self) -> int:
        """Steps after the last, whose batches a uniform average's batch norms are estimated
        with."""
        return self.schedule.steps_per_epoch if self.recipe.average.kind == "uniform" else 0

    @property
    def validate_steps(self) -> int:
        """Steps between validations."""
        return self.recipe.train.validate_epochs * self.schedule.steps_per_epoch


def build_state(job: TrainJob, device: torch.device, *, wrap: Any = None) -> TrainState:
    """A fresh state: initial weights depend on the recipe's seed alone."""
    recipe, section = job.recipe, job.recipe.optim
    torch.manual_seed(recipe.seed)
    try:
        model = reid_models.create_model(
            job.card.model,
            job.card.num_classes,
            image_size=job.card.image_size,
            camera_count=len(job.card.cameras),
            **recipe.model.options(),
        )
    except ValueError as error:  # weights that do not fit
        raise UserError(f"model: {error}") from error
    loss, trainable = trained_parts(recipe, model)
    model = model.to(device).to(memory_format=torch.channels_last)
    wrapped = model if wrap is None else wrap(model)
    return TrainState(
        model=wrapped,
        optimizer=build_optimizer(
            wrapped,
            name=section.name,
            lr=section.lr,
            momentum=section.momentum,
            weight_decay=section.weight_decay,
            bias_lr_factor=section.bias_lr_factor,
            nesterov=section.nesterov,
        ),
        schedule=job.schedule,
        loss=loss.to(device),
        average=_average(job, wrapped),
        trainable=trainable,
        seed=recipe.seed,
        mean=recipe.input.mean,
        std=recipe.input.std,
        erasing=ErasingConfig(
            probability=recipe.augment.erase,
            area=recipe.augment.erase_area,
            aspect=recipe.augment.erase_aspect,
        ),
        precision=recipe.train.precision,
        grad_clip=section.grad_clip,
    )


def trained_parts(recipe: Recipe, model: ReidModel) -> tuple[ReidLoss, Trainable | None]:
    """The loss of a fresh model, whose frozen parts are frozen by this, and its blockwise
    unfreezing, if any.

    Raises:
        UserError: the recipe asks for something that this model does not have.
    """
    try:
        loss = build_loss(model, **recipe.loss.model_dump())
    except ValueError as error:
        raise UserError(f"loss: {error}") from error
    if recipe.loss.center_weight and not loss.center_weights:
        raise UserError(
            f"loss.center_weight={recipe.loss.center_weight}: {type(model).__name__} has no metric "
            "term here that a center loss could stand beside; set it to 0"
        )
    parts = recipe.optim.freeze
    try:
        freeze(model, parts)
    except ValueError as error:
        raise UserError(f"optim.freeze={list(parts)}: {error}") from error
    trained = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
    if not trained:
        raise UserError(f"optim.freeze={list(parts)} leaves no parameter to train; freeze less")
    return loss, _unfreezing(recipe, model, trained)


def _unfreezing(recipe: Recipe, model: ReidModel, trained: frozenset[str]) -> Trainable | None:
    section = recipe.unfreeze
    if section.start is None:
        return None
    schedule = UnfreezeSchedule(
        start=section.start, every=section.every, at_epoch0=section.at_epoch0
    )

    @lru_cache(maxsize=1)
    def trainable(epoch: int) -> frozenset[str]:
        # what `freeze` took out stays out: the optimiser does not have it
        return trainable_parameters(model, schedule, epoch) & trained

    try:
        first = trainable(0)
    except ValueError as error:
        raise UserError(f"unfreeze.start={section.start}: {error}; set it to null") from error
    if not first:
        raise UserError(
            f"unfreeze.start={section.start}, unfreeze.at_epoch0={section.at_epoch0} and "
            f"optim.freeze={list(recipe.optim.freeze)} leave no parameter to train in the first "
            "epoch; freeze less"
        )
    return trainable


def _average(job: TrainJob, model: torch.nn.Module) -> WeightAverage | None:
    section = job.recipe.average
    if section.kind == "none":
        return None
    config = AverageConfig(kind=section.kind, start_epoch=section.start_epoch, decay=section.decay)
    return WeightAverage(model, config, job.schedule)
