"""Training: Ray Train around the engine.

A run's folder is named by everything that its weights depend on. The same command goes on from the
newest checkpoint, or finds the run finished. Ray Train starts the workers, feeds them by Ray Data,
and starts them again when one dies; where to go on is read from the run's own checkpoints in both
cases.
"""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray.train
import torch
from ray.train.torch import TorchTrainer

from pipelines.augment import Augmentation
from pipelines.batches import BatchPlan, IdentityIndex, ImageReader, split_identities
from pipelines.blocks import Blocks
from pipelines.checkpoints import latest_checkpoint, latest_step
from pipelines.console import Bar, Reporter
from pipelines.embedder import CARD, WEIGHTS, ModelCard, read_card
from pipelines.engine import ScheduleConfig, verify_checkpoint
from pipelines.errors import UserError
from pipelines.feed import Feed, in_order
from pipelines.ingest import open_blocks
from pipelines.ray_session import ray_session, slots
from pipelines.recipe import Recipe
from pipelines.recipe_file import dump_recipe
from pipelines.stage import StageResult, once, stage_script
from pipelines.store import Folder, Store, fingerprint, sha256_file
from pipelines.train_loop import CHECKPOINTS, FINAL, METRICS, TrainJob, train_loop
from pipelines.validation import HoldOut

RECIPE_FILE = "recipe.yaml"
DATA_SLOTS = 2
TRAINED_BY = (
    "seed",
    "model",
    "data",
    "input",
    "augment",
    "batch",
    "loss",
    "optim",
    "schedule",
    "train",
)
WITHOUT_EFFECT = {
    "data": {"root", "rows_per_shard", "quarantine_limit"},
    "train": {
        "log_steps",
        "max_failures",
        "keep_checkpoints",
        "checkpoint_epochs",
        "validate_epochs",
    },
}


@dataclass(frozen=True)
class ModelFolder:
    """A finished run: weights, card, recipe."""

    folder: Folder
    manifest: dict[str, Any]

    @property
    def path(self) -> Path:
        """The folder as `pipelines.embedder.open_embedder` takes it."""
        return self.folder.local()

    @property
    def card(self) -> ModelCard:
        """The model card."""
        return read_card(self.path)

    @property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file."""
        return str(self.manifest["weights_sha256"])


@once
def run(recipe: Recipe, store: Store, reporter: Reporter) -> StageResult:
    """Train the recipe's model, go on with it, or find it trained."""
    blocks = open_blocks(recipe, store, reporter)
    folder = store.room("runs", recipe.model_name, training_fingerprint(recipe, blocks))
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
    """The recipe's model, trained first if need be."""
    folder = Folder.open(run(recipe, store, reporter).uri)
    return ModelFolder(folder, folder.committed() or {})


def training_fingerprint(recipe: Recipe, blocks: Blocks) -> str:
    """SHA-256 of the data's fingerprint and every setting that the weights depend on."""
    plain = recipe.to_dict()
    parts = {name: plain[name] for name in TRAINED_BY}
    for section, names in WITHOUT_EFFECT.items():
        parts[section] = {k: v for k, v in parts[section].items() if k not in names}
    if recipe.data.holdout:
        parts["protocol"] = recipe.evaluate.protocol  # of the held-out figures
    return fingerprint(blocks.fingerprint, parts)


def prepare(
    recipe: Recipe, blocks: Blocks, folder: Folder, *, report: bool = False
) -> tuple[TrainJob, Feed]:
    """What the workers are told, and what they are fed; `UserError` for data that cannot be
    trained on."""
    train, held = split_identities(
        blocks, min_images=recipe.data.min_images, holdout=recipe.data.holdout
    )
    plan = BatchPlan(train, recipe.seed, recipe.batch.identities, recipe.batch.images)
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
    feed = Feed(blocks, plan, reader, recipe.train.workers, schedule.total_steps)
    job = TrainJob(
        recipe=recipe,
        blocks=blocks,
        card=_card(recipe, blocks, train),
        run=folder.local(),
        schedule=schedule,
        holdout=HoldOut(blocks, held, recipe.evaluate.protocol) if recipe.data.holdout else None,
        threads=max(1, (os.cpu_count() or 1) // recipe.train.workers),
        report=report,
    )
    return job, feed


def fit(
    job: TrainJob, feed: Feed, *, callbacks: list[ray.train.UserCallback] | None = None
) -> dict[str, float]:
    """Run the job on the connected cluster; returns the last validation's figures."""
    checkpoints = job.run / CHECKPOINTS

    def dataset() -> "ray.data.Dataset":
        return feed.dataset(latest_step(checkpoints))

    newest = latest_checkpoint(checkpoints)
    if newest is not None:
        verify_checkpoint(newest)
    section = job.recipe.train
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=section.workers, use_gpu=slots("GPU") >= section.workers
        ),
        run_config=ray.train.RunConfig(
            # Ray's own bookkeeping of one attempt; the run's state is in its checkpoints.
            name=f"attempt-{uuid4().hex[:8]}",
            storage_path=str(job.run / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=section.max_failures),
            callbacks=callbacks,
        ),
        datasets={"train": dataset},
        dataset_config=ray.train.DataConfig(
            execution_options=in_order(), enable_shard_locality=False
        ),
    )
    with _ctrl_c_interrupts():
        result = trainer.fit()
    return dict(result.return_value or {})


@contextmanager
def _ctrl_c_interrupts() -> Iterator[None]:
    """Ray Train installs its own SIGINT handler, which exits with status 0, and leaves it there."""
    previous = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        raise KeyboardInterrupt from ended
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, previous)


def _train(recipe: Recipe, blocks: Blocks, folder: Folder, reporter: Reporter) -> dict[str, Any]:
    job, feed = prepare(recipe, blocks, folder)
    folder.make()
    folder.write_json(CARD, job.card.to_dict())
    with folder.write(RECIPE_FILE) as file:
        file.write(dump_recipe(recipe).encode())
    needed = recipe.train.workers + DATA_SLOTS
    if slots("CPU") < needed:
        raise UserError(
            f"the cluster has {slots('CPU'):.0f} CPUs; train.workers={recipe.train.workers} and "
            f"their data tasks need {needed}"
        )
    with (
        reporter.bar("train", total=job.schedule.total_steps, unit="steps") as bar,
        _follow(job.run / METRICS, bar, reporter),
    ):
        figures = fit(job, feed)
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


def _card(recipe: Recipe, blocks: Blocks, train: IdentityIndex) -> ModelCard:
    card = ModelCard(
        model=recipe.model.name,
        options=recipe.model.options(),
        num_classes=len(train),
        cameras=tuple(blocks.train_cameras),
        image_size=recipe.input.image_size,
        mean=recipe.input.mean,
        std=recipe.input.std,
        interpolation=recipe.input.interpolation,
        flip=recipe.embed.flip,
        embedding_dim=0,
    )
    try:
        with torch.device("meta"):
            return replace(card, embedding_dim=card.create_model().embedding_dim)
    except ValueError as error:
        raise UserError(f"model: {error}") from error


@contextmanager
def _follow(folder: Path, bar: Bar, reporter: Reporter) -> Iterator[None]:
    """Pass on what rank 0 writes, while the block runs: to the bar, and to the reporter's
    listeners."""
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
                bar.to(rows[-1]["step"] + 1, f"loss {rows[-1]['loss']:.3f}")

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
