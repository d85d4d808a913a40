"""The whole way: images in; model, gallery, numbers and a promoted version out.

Every stage commits by itself, so a run that was killed goes on where it was. The result of a
finished run is kept under the fingerprint of its data and recipe; the same command then finds it
and returns.
"""

import time
from contextlib import ExitStack
from typing import Any

from pipelines import embed, evaluate, gallery_build, ingest, register, train
from pipelines.blocks import Blocks
from pipelines.console import Reporter
from pipelines.evaluate import read_lists, require_scorable, with_lists
from pipelines.ray_session import ray_session
from pipelines.recipe import Recipe
from pipelines.registry import PromotionRefusedError, Tracker, aliases, promote, rolled_back
from pipelines.results import write_page
from pipelines.stage import StageResult, StageRun, once, stage_script
from pipelines.store import Folder, Store, fingerprint
from pipelines.tracking import listening, replay, step_logger, tracked
from pipelines.train_loop import METRICS
from pipelines.training_fingerprint import weights_checksums

STAGES: dict[str, StageRun] = {
    "ingest": ingest.run,
    "train": train.run,
    "embed": embed.run,
    "evaluate": evaluate.run,
    "gallery": gallery_build.run,
    "register": register.run,
}
WITHOUT_EFFECT = ("tune",)


@once
def run(recipe: Recipe, store: Store, reporter: Reporter) -> StageResult:
    """Run all stages, or find the finished result."""
    store.require_local("run")
    train.require_named(recipe)
    start = time.monotonic()
    ingested = ingest.run(recipe, store, reporter)
    first = {"ingest": time.monotonic() - start}
    blocks = Blocks.open(ingested.uri)
    folder = store.room("results", recipe.title, pipeline_fingerprint(recipe, blocks))
    with folder.lock():
        done = _still_true(folder.committed(), recipe, store)
        if done is not None:
            names = [*_stages(recipe), "promote", "report"]
            return StageResult(
                stage="run", skipped=True, uri=folder.uri, values={**done, "skipped": names}
            )
        with ray_session(verbose=reporter.verbose):
            values = _run(recipe, store, reporter, blocks, folder, first)
        folder.commit(values)
    return StageResult(stage="run", skipped=False, uri=folder.uri, values=values)


def pipeline_fingerprint(recipe: Recipe, blocks: Blocks) -> str:
    """SHA-256 of the data and the recipe."""
    plain = {k: v for k, v in recipe.to_dict().items() if k not in WITHOUT_EFFECT}
    plain["data"] = {k: v for k, v in plain["data"].items() if k not in ("root", "roots")}
    plain["batch"]["views"] = list(recipe.batch.views.items())  # they have an order
    plain["model"] |= weights_checksums(recipe)
    if recipe.embed.model is not None:
        model = train.open_named(recipe)
        plain["embed"]["model"] = [model.folder.uri, model.weights_sha256, model.card.to_dict()]
    return fingerprint("run", blocks.fingerprint, plain)


def _still_true(done: dict[str, Any] | None, recipe: Recipe, store: Store) -> dict[str, Any] | None:
    """A finished result with the alias that its version has today; None where its files or its
    version are gone, or MLflow is another one now."""
    if done is None or not all(Folder.open(done[name]).exists() for name in ("gallery", "report")):
        return None
    tracker = Tracker.open(store.uri, experiment=recipe.registry.experiment)
    model = done["model"]
    held = aliases(tracker, model["name"], model["version"])
    if tracker.uri != done["tracking"] or held is None:
        return None
    return {**done, "model": {**model, "alias": held[0] if held else None}}


def _run(
    recipe: Recipe,
    store: Store,
    reporter: Reporter,
    blocks: Blocks,
    folder: Folder,
    seconds: dict[str, float],
) -> dict[str, Any]:
    require_scorable(blocks, with_lists(recipe.evaluate, recipe.data.root))
    names = _stages(recipe)
    if "train" in names:
        train.require_room(recipe)
    embed.require_room(recipe)
    tracker = Tracker.open(store.uri, experiment=recipe.registry.experiment)
    key = folder.name
    results: dict[str, StageResult] = {}
    with tracked(tracker, recipe.title, key, params=recipe.to_dict()) as parent:
        tracker.log_dataset(
            parent,
            name=recipe.dataset_title,
            fingerprint=blocks.fingerprint,
            source=blocks.folder.uri,
            profile=blocks.manifest["images"],
        )
        reporter.parent_run = parent
        for name in names:
            start = time.monotonic()
            results[name] = _stage(name, recipe, store, reporter, tracker, f"{key}/{name}")
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - start
            state = "already committed" if results[name].skipped else "done"
            reporter.say(f"{name}: {state} ({seconds[name]:.1f} s)")
        start = time.monotonic()
        version = results["register"].values["model"]["version"]
        alias = _promote(recipe, tracker, version, reporter)
        values = _values(recipe, results, store, seconds, alias)
        lists = read_lists(recipe, results["evaluate"].uri)
        page = write_page(folder.make(), values, results["evaluate"].values, lists)
        values["report"], values["search_ms"] = page
        seconds["report"] = time.monotonic() - start
        _track_result(tracker, parent, results, values)
    return values


def _stages(recipe: Recipe) -> list[str]:
    return [name for name in STAGES if name != "train" or recipe.embed.model is None]


def _stage(
    name: str, recipe: Recipe, store: Store, reporter: Reporter, tracker: Tracker, key: str
) -> StageResult:
    if name == "register":
        return STAGES[name](recipe, store, reporter)
    with ExitStack() as stack:
        run_id = stack.enter_context(
            tracked(tracker, name, key, stage=name, parent=reporter.parent_run)
        )
        log = step_logger(tracker, run_id)
        if name == "train":
            stack.enter_context(listening(reporter, log))
        result = STAGES[name](recipe, store, reporter)
        if name == "train" and result.skipped:
            replay(Folder.open(result.uri).local(METRICS), log)
        tracker.log_dict(run_id, {"uri": result.uri, **result.values}, f"{name}.json")
    return result


def _promote(recipe: Recipe, tracker: Tracker, version: int, reporter: Reporter) -> str | None:
    """The alias that the version ends up with."""
    mode = recipe.registry.promote
    if mode == "always" or (
        mode == "better" and not rolled_back(tracker, recipe.model_name, version)
    ):
        try:
            force = mode == "always"
            promote(tracker, recipe.model_name, version, force=force)
        except PromotionRefusedError as error:
            reporter.say(f"not promoted: {error}")
    held = aliases(tracker, recipe.model_name, version)
    return held[0] if held else None


def _values(
    recipe: Recipe,
    results: dict[str, StageResult],
    store: Store,
    seconds: dict[str, float],
    alias: str | None,
) -> dict[str, Any]:
    trained = results["train"].uri if "train" in results else train.named_folder(recipe).uri
    return {
        "metrics": results["evaluate"].values["metrics"],
        "protocol": results["evaluate"].values["protocol"],
        "images": results["ingest"].values["images"],
        "quarantined": results["ingest"].values["quarantined"],
        "checkpoint": trained,
        "embeddings": results["embed"].uri,
        "gallery": results["gallery"].uri,
        "rows": results["gallery"].values["rows"],
        "shards": results["gallery"].values["shards"],
        "model": {**results["register"].values["model"], "alias": alias},
        "store": store.uri,
        "tracking": results["register"].uri,
        "seconds": seconds,
        "skipped": [name for name, result in results.items() if result.skipped],
    }


def _track_result(
    tracker: Tracker, run_id: str, results: dict[str, StageResult], values: dict[str, Any]
) -> None:
    now = int(time.time() * 1000)
    tracker.log_metrics(run_id, [(k, v, 0, now) for k, v in values["metrics"].items()])
    tracker.log_artifact_file(run_id, Folder.open(values["report"]).local())
    cmc = results["evaluate"].values["cmc"]
    tracker.log_metrics(
        run_id, [("cmc", value, rank, now) for rank, value in enumerate(cmc, start=1)]
    )
    tracker.log_dict(run_id, values, "result.json")
    tracker.set_tags(run_id, {"gallery": values["gallery"], "weights": values["checkpoint"]})


if __name__ == "__main__":
    stage_script("run")
