"""Training: Ray Train around the engine.

A run's folder is named by everything that its weights depend on. The same command goes on from the
newest checkpoint, or finds the run finished.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.augment import Augmentation
from pipelines.batches import BatchPlan, ImageReader
from pipelines.blocks import Blocks
from pipelines.console import Bar, Reporter
from pipelines.embedder import CARD, WEIGHTS, ModelCard, read_card
from pipelines.engine import ScheduleConfig
from pipelines.errors import UserError
from pipelines.feed import Feed
from pipelines.fit import fit
from pipelines.identity_index import ViewRows, cameras_of, find_views, split_identities
from pipelines.ingest import open_blocks
from pipelines.ray_session import ray_session, slots
from pipelines.recipe import Recipe
from pipelines.recipe_file import dump_recipe
from pipelines.stage import StageResult, once, stage_script
from pipelines.store import Folder, Store, sha256_file
from pipelines.train_job import TrainJob, trained_parts
from pipelines.train_loop import FINAL, METRICS
from pipelines.training_fingerprint import file_checksum, training_fingerprint
from pipelines.validation import HoldOut

RECIPE_FILE = "recipe.yaml"
DATA_SLOTS = 2


@dataclass(frozen=True)
class ModelFolder:
    """A finished run: weights, card, recipe."""

    folder: Folder
    manifest: dict[str, Any]
    card: ModelCard
    """The model card, with what the recipe that opened it takes for the embedding."""

    @property
    def path(self) -> Path:
        """The folder, on this machine."""
        return self.folder.local()

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file."""
        return str(self.manifest["weights_sha256"])


@once
def run(recipe: Recipe, store: Store, reporter: Reporter) -> StageResult:
    """Train the recipe's model, go on with it, or find it trained."""
    store.require_local("train")
    blocks = open_blocks(recipe, store, reporter)
    folder = store.room("runs", recipe.title, training_fingerprint(recipe, blocks))
    with folder.lock():
        done = folder.committed()
        skipped = done is not None
        if done is None:
            with ray_session(verbose=reporter.verbose):
                done = _train(recipe, blocks, folder, reporter)
    return StageResult(
        stage="train",
        skipped=skipped,
        uri=folder.uri,
        values={
            "checkpoint": folder.uri,
            "weights_sha256": done["weights_sha256"],
            "steps": done["steps"],
            "metrics": done["metrics"],
        },
    )


def open_model(recipe: Recipe, store: Store, reporter: Reporter) -> ModelFolder:
    """The model of `embed.model`; without one the recipe's, trained first if need be."""
    if recipe.embed.model is not None:
        return open_named(recipe)
    return _opened(Folder.open(run(recipe, store, reporter).uri), recipe)


def open_named(recipe: Recipe) -> ModelFolder:
    """The model of `embed.model`; see `named_folder`."""
    return _opened(named_folder(recipe), recipe)


def require_named(recipe: Recipe) -> None:
    """Refuse an `embed.model` that is none, before anything is read or computed."""
    if recipe.embed.model is not None:
        open_named(recipe)


def _opened(folder: Folder, recipe: Recipe) -> ModelFolder:
    card = read_card(folder.local()).as_embedded_by(recipe)
    return ModelFolder(folder, folder.committed() or {}, card)


def named_folder(recipe: Recipe) -> Folder:
    """The folder of `embed.model`.

    Raises:
        UserError: no finished model lies there, or not the one that was finished.
    """
    folder = Folder.open(str(recipe.embed.model))
    manifest = folder.committed()
    if not isinstance(manifest, dict) or not folder.exists(WEIGHTS):
        raise UserError(
            f"embed.model={recipe.embed.model}: no finished model lies there; `reid train` and "
            "`reid import` make such folders"
        )
    weights = folder.local(WEIGHTS)
    if file_checksum(weights) != manifest.get("weights_sha256"):
        raise UserError(
            f"{weights}: is not the file that training or import left there; import the model "
            "again into a new folder"
        )
    return folder


def prepare(
    recipe: Recipe,
    blocks: Blocks,
    folder: Folder,
    *,
    report: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[TrainJob, Feed]:
    """What the workers are told, and what they are fed; `UserError` for data that cannot be
    trained on. `say` hears what is trained on."""
    train, held = split_identities(
        blocks, min_images=recipe.data.min_images, holdout=recipe.data.holdout
    )
    batch, lacking = recipe.batch, len(train)
    views: tuple[ViewRows, ...] = ()
    if batch.views:
        train, views = find_views(blocks, train, batch.views)
    lacking -= len(train)
    plan = BatchPlan(train, recipe.seed, batch.identities, batch.images, batch.sampler, views)
    left_out = f"; {lacking} left out, for they lack a view of batch.views" if lacking else ""
    say(f"train: {plan.used_images} images, {train}{left_out}")
    steps_per_epoch = recipe.train.steps_per_epoch or plan.steps_per_epoch
    schedule = ScheduleConfig(
        epochs=recipe.train.epochs, steps_per_epoch=steps_per_epoch, **recipe.schedule.model_dump()
    )
    reader = ImageReader(
        size=recipe.input.image_size,
        interpolation=recipe.input.interpolation,
        augmentation=Augmentation(flip=recipe.augment.flip, pad=recipe.augment.pad),
        seed=recipe.seed,
    )
    cameras = cameras_of(blocks, train)
    card = ModelCard.of_recipe(recipe, cameras=cameras, num_classes=len(train))
    with torch.device("meta"):
        trained_parts(recipe, card.create_model())  # refuse what the model does not have here
    job = TrainJob(
        recipe=recipe,
        blocks=blocks,
        card=card,
        run=folder.local(),
        schedule=schedule,
        holdout=HoldOut(blocks, held, recipe.protocol) if recipe.data.holdout else None,
        report=report,
    )
    steps = schedule.total_steps + job.estimation_steps
    return job, Feed(blocks, cameras, plan, reader, recipe.train.workers, steps)


def _train(recipe: Recipe, blocks: Blocks, folder: Folder, reporter: Reporter) -> dict[str, Any]:
    require_room(recipe)
    job, feed = prepare(recipe, blocks, folder, say=reporter.say)
    folder.make()
    folder.write_json(CARD, job.card.to_dict())
    with folder.write(RECIPE_FILE) as file:
        file.write(dump_recipe(recipe).encode())
    with (
        reporter.bar("train", total=job.schedule.total_steps, unit="steps") as bar,
        _follow(job, bar, reporter),
    ):
        figures = fit(job, feed, say=reporter.say)
    weights = job.run / FINAL
    weights.replace(job.run / WEIGHTS)
    manifest = {
        "recipe": recipe.recipe,
        "data_fingerprint": blocks.fingerprint,
        "weights_sha256": sha256_file(folder.fs, folder.path(WEIGHTS)),
        "steps": job.schedule.total_steps,
        "metrics": figures,
    }
    folder.commit(manifest)
    return manifest


def require_room(recipe: Recipe) -> None:
    """Refuse more training workers than the connected cluster has room for: they would wait."""
    workers, gpus = recipe.train.workers, slots("GPU")
    needed = workers + DATA_SLOTS
    if slots("CPU") < needed:
        raise UserError(
            f"the cluster has {slots('CPU'):.0f} CPUs; train.workers={workers} and "
            f"their data tasks need {needed}"
        )
    if 0 < gpus < workers:
        raise UserError(
            f"train.workers={workers}, but the cluster has {gpus:.0f} GPUs: use as many workers at "
            "most, or hide the GPUs (CUDA_VISIBLE_DEVICES=) to train on CPUs"
        )


@contextmanager
def _follow(job: TrainJob, bar: Bar, reporter: Reporter) -> Iterator[None]:
    """Pass on what rank 0 writes, while the block runs: to the bar, and to the reporter's
    listeners."""
    folder = job.run / METRICS
    ended = threading.Event()
    seen: set[str] = set()

    def pass_on() -> None:
        for path in sorted(folder.glob("*.json")):
            if path.name in seen:
                continue
            seen.add(path.name)
            content = json.loads(path.read_text())
            rows = content if isinstance(content, list) else [content]
            for listener in reporter.on_steps:
                listener(rows, path.stat().st_mtime_ns // 1_000_000)
            if "loss" in rows[-1]:
                done, note = rows[-1]["step"] + 1, f"loss {rows[-1]['loss']:.3f}"
                if done == job.schedule.total_steps and job.estimation_steps:
                    note += f"; batch norms over {job.estimation_steps} more steps"
                bar.to(done, note)

    def watch() -> None:
        while not ended.wait(0.5):
            pass_on()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        pass_on()


if __name__ == "__main__":
    stage_script("train")
