"""A training job of a few steps in this process, without Ray, and what it leaves behind."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pipelines.blocks import Blocks
from pipelines.checkpoints import latest_checkpoint
from pipelines.counter_random import counter_hash
from pipelines.embedder import ModelCard
from pipelines.engine import ScheduleConfig, TrainState, load_checkpoint
from pipelines.recipe import Recipe
from pipelines.recipe_file import check_recipe, load_recipe
from pipelines.train_job import TrainJob, build_state
from pipelines.train_loop import CHECKPOINTS, FINAL, take_steps
from tests.conftest import TINY

EPOCHS, STEPS = 4, 2
LAST = EPOCHS * STEPS
IDENTITIES, IMAGES = 4, 2
MODEL = {
    "name": "la_transformer",
    "transformer": "vit_tiny_patch16_224",
    "bottleneck_dim": 16,
    "triplet_on": "feature",
}


def recipe_of(model: dict[str, Any] = MODEL, **sections: dict[str, Any]) -> Recipe:
    plain = load_recipe("demo", TINY).to_dict()
    plain["model"] = model
    changes: dict[str, dict[str, Any]] = {
        "input": {"image_size": [32, 32]},
        "train": {
            "epochs": EPOCHS,
            "steps_per_epoch": STEPS,
            "keep_checkpoints": 99,
            "precision": "fp32",
        },
    }
    for section, values in (*changes.items(), *sections.items()):
        plain[section] |= values
    return check_recipe(plain, "test")


def job_of(recipe: Recipe, run: Path) -> TrainJob:
    card = ModelCard(
        model=recipe.model.name,
        options=recipe.model.options(),
        num_classes=IDENTITIES,
        cameras=("c1", "c2"),
        image_size=recipe.input.image_size,
        mean=recipe.input.mean,
        std=recipe.input.std,
        interpolation=recipe.input.interpolation,
        flip=False,
        embedding_dim=0,
    )
    return TrainJob(
        recipe=recipe,
        blocks=cast(Blocks, None),  # nothing here reads images
        card=card,
        run=run,
        schedule=ScheduleConfig(
            epochs=EPOCHS, steps_per_epoch=STEPS, **recipe.schedule.model_dump()
        ),
        holdout=None,
        report=False,
    )


class StoppedError(Exception):
    """What interrupts a run."""


def batches(job: TrainJob, first: int, stop: int | None) -> Iterator[dict[str, np.ndarray]]:
    """What the feed gives: noise, brighter by identity, up to the last step or the stop."""
    height, width = job.card.image_size
    position = np.arange(IDENTITIES * IMAGES)
    label = position // IMAGES
    for step in range(first, LAST + job.estimation_steps):
        if step == stop:
            raise StoppedError
        pixel = np.arange(height * width * 3)
        noise = counter_hash("pixels", step, position[:, None], pixel[None]) >> np.uint64(58)
        image = noise.reshape(-1, height, width, 3).astype(np.uint8)
        yield {
            "image": image + (40 * label).astype(np.uint8)[:, None, None, None],
            "label": label,
            "camera": position % 2,
            "position": position,
            "step": np.full(len(position), step),
        }


def train(job: TrainJob, *, stop: int | None = None) -> TrainState:
    """Go on from the newest checkpoint to the end, as a worker does."""
    state = build_state(job, torch.device("cpu"))
    newest = latest_checkpoint(job.run / CHECKPOINTS)
    if newest is not None:
        load_checkpoint(newest, state)
    take_steps(job, state, batches(job, state.step, stop), 0, {})
    return state


def final(job: TrainJob) -> dict[str, Tensor]:
    return dict(safetensors.torch.load_file(job.run / FINAL))


def checkpoint_of(job: TrainJob, step: int, file: str = "model") -> dict[str, Tensor]:
    path = job.run / CHECKPOINTS / f"step-{step:06d}" / f"{file}.safetensors"
    return dict(safetensors.torch.load_file(path))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())
