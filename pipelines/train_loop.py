"""What one Ray Train worker does: build the state, go on from the newest checkpoint, take the
steps.

Rank 0 writes the checkpoints and the losses into the run's folder. A checkpoint holds everything
that the next step depends on, and the feed starts at its step; so a run that was killed at any
moment ends with the same weights as one that was not.
"""

import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch

import reid_models
from pipelines.blocks import Blocks
from pipelines.checkpoints import latest_checkpoint
from pipelines.embedder import ModelCard
from pipelines.engine import (
    ErasingConfig,
    ScheduleConfig,
    StepMetrics,
    TrainState,
    build_optimizer,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    save_weights,
    train_step,
)
from pipelines.errors import UserError
from pipelines.recipe import Recipe
from pipelines.validation import HoldOut
from reid_models.losses import ReidLoss

CHECKPOINTS = "checkpoints"
METRICS = "metrics"
FINAL = "trained.safetensors"


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
    def validate_steps(self) -> int:
        """Steps between validations."""
        return self.recipe.train.validate_epochs * self.schedule.steps_per_epoch


def train_loop(config: dict[str, Any]) -> dict[str, float]:
    """The function that Ray Train runs on every worker; returns the last validation's figures."""
    job: TrainJob = ray.get(config["job"])
    context = ray.train.get_context()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    rank = context.get_world_rank()
    if not job.run.is_dir():
        raise UserError(
            f"{job.run}: not there on host {socket.gethostname()}; training needs a --store on a "
            "filesystem that all nodes share"
        )
    state = build_state(job, ray.train.torch.get_device(), wrap=ray.train.torch.prepare_model)
    newest = latest_checkpoint(job.run / CHECKPOINTS)
    figures = {} if newest is None else load_checkpoint(newest, state)["figures"]
    batches = ray.train.get_dataset_shard("train").iter_batches(
        batch_size=job.recipe.batch.identities
        * job.recipe.batch.images
        // context.get_world_size(),
        batch_format="numpy",
        prefetch_batches=2,
    )
    return take_steps(job, state, batches, rank, figures)


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
    model = model.to(device).to(memory_format=torch.channels_last)
    layout = model.loss_layout
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
        ),
        schedule=job.schedule,
        loss=ReidLoss(layout, **recipe.loss.model_dump()),
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


def take_steps(
    job: TrainJob,
    state: TrainState,
    batches: Iterable[dict[str, np.ndarray]],
    rank: int,
    figures: dict[str, float],
) -> dict[str, float]:
    """Train on the batches, which start at the state's step, and write the final weights.

    `figures` are the last validation's before these steps; the last one's are returned.
    """
    pending: list[StepMetrics] = []
    for batch in batches:
        _require_own_batch(batch, state.step, rank)
        pending.append(train_step(state, batch, rank=rank))
        last = state.step == job.schedule.total_steps
        save = last or state.step % job.checkpoint_steps == 0
        # A resumed run does not repeat the steps before its checkpoint, so their losses must lie
        # in a file by then.
        if rank == 0 and (save or state.step % job.recipe.train.log_steps == 0):
            _write_metrics(job.run, state.step, pending)
            pending = []
        if job.holdout is not None and (last or state.step % job.validate_steps == 0):
            figures = _validate(job, state, rank)
        if rank == 0 and save:
            save_checkpoint(job.run / CHECKPOINTS, state, extra={"figures": figures})
            prune_checkpoints(job.run / CHECKPOINTS, job.recipe.train.keep_checkpoints)
    if rank == 0:
        save_weights(job.run / FINAL, state.model)
    return figures


def _require_own_batch(batch: dict[str, np.ndarray], step: int, rank: int) -> None:
    """Refuse rows of another step or another worker: the data plane must keep the plan's order."""
    positions = np.arange(len(batch["position"])) + rank * len(batch["position"])
    if not ((batch["step"] == step).all() and np.array_equal(batch["position"], positions)):
        raise RuntimeError(
            f"worker {rank} at step {step} was fed step {batch['step'][0]}, "
            f"position {batch['position'][0]}"
        )


def _validate(job: TrainJob, state: TrainState, rank: int) -> dict[str, float]:
    """Figures on the held-out identities, by rank 0; the others wait at the report."""
    figures: dict[str, float] = {}
    epoch = state.step // job.schedule.steps_per_epoch
    if rank == 0 and job.holdout is not None:
        figures = job.holdout.evaluate(state.model, state.device, job.card)
        write_json(
            job.run / METRICS / f"validation-{state.step:08d}.json", {"step": state.step, **figures}
        )
    if job.report:
        ray.train.report({"epoch": epoch, "step": state.step, **figures})
    return figures


def _write_metrics(run: Path, step: int, pending: list[StepMetrics]) -> None:
    rows = [{"step": m.step, **m.floats()} for m in pending]
    write_json(run / METRICS / f"steps-{step:08d}.json", rows)


def write_json(path: Path, value: object) -> None:
    """Write a small JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    staged.write_text(json.dumps(value))
    staged.replace(path)
