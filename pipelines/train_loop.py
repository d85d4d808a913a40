"""What one Ray Train worker does: build the state, go on from the newest checkpoint, take the
steps.

Rank 0 writes the checkpoints and the losses into the run's folder. A checkpoint holds everything
that the next step depends on, and the feed starts at its step; so a run that was killed at any
moment ends with the same weights as one that was not.
"""

import json
import os
import socket
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch

from pipelines.checkpoints import latest_checkpoint
from pipelines.engine import (
    StepMetrics,
    TrainState,
    finish_average,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    save_weights,
    train_step,
)
from pipelines.errors import UserError
from pipelines.train_job import TrainJob, build_state

CHECKPOINTS = "checkpoints"
METRICS = "metrics"
FINAL = "trained.safetensors"


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
    wrap = partial(
        ray.train.torch.prepare_model,
        parallel_strategy_kwargs={"find_unused_parameters": job.recipe.unfreeze.start is not None},
    )
    state = build_state(job, ray.train.torch.get_device(), wrap=wrap)
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


def take_steps(
    job: TrainJob,
    state: TrainState,
    batches: Iterable[dict[str, np.ndarray]],
    rank: int,
    figures: dict[str, float],
) -> dict[str, float]:
    """Train on the batches, which start at the state's step, and write the final weights, which
    are their average where the recipe asks for one.

    `figures` are the last validation's before these steps; the last one's are returned, which
    judges the final weights.
    """
    pending: list[StepMetrics] = []
    stream = own_batches(batches, state.step, rank)
    for batch in islice(stream, job.schedule.total_steps - state.step):
        pending.append(train_step(state, batch, rank=rank))
        last = state.step == job.schedule.total_steps
        save = last or state.step % job.checkpoint_steps == 0
        # A resumed run does not repeat the steps before its checkpoint, so their losses must lie
        # in a file by then.
        if rank == 0 and (save or state.step % job.recipe.train.log_steps == 0):
            _write_metrics(job.run, state.step, pending)
            pending = []
        judged = state.average is None if last else state.step % job.validate_steps == 0
        if job.holdout is not None and judged:
            figures = _validate(job, state, rank)
        if rank == 0 and save:
            save_checkpoint(job.run / CHECKPOINTS, state, extra={"figures": figures})
            prune_checkpoints(job.run / CHECKPOINTS, job.recipe.train.keep_checkpoints)
    if state.average is not None:
        # After the last checkpoint: a run that is killed in here does it again from there.
        finish_average(state, stream, rank=rank)
        if job.holdout is not None:
            figures = _validate(job, state, rank)
    if rank == 0:
        save_weights(job.run / FINAL, state.model)
    return figures


def own_batches(
    batches: Iterable[dict[str, np.ndarray]], first_step: int, rank: int
) -> Iterator[dict[str, np.ndarray]]:
    """The batches, refusing rows of another step or another worker: the data plane must keep the
    plan's order."""
    for step, batch in enumerate(batches, start=first_step):
        positions = np.arange(len(batch["position"])) + rank * len(batch["position"])
        if not ((batch["step"] == step).all() and np.array_equal(batch["position"], positions)):
            raise RuntimeError(
                f"worker {rank} at step {step} was fed step {batch['step'][0]}, "
                f"position {batch['position'][0]}"
            )
        yield batch


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
