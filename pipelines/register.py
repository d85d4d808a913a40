"""A recipe's trained model and gallery as a version in the MLflow registry."""

from typing import Any

from pipelines.console import Reporter
from pipelines.embedder import WEIGHTS
from pipelines.evaluate import run as run_evaluate
from pipelines.gallery_build import note_model
from pipelines.gallery_build import run as run_gallery
from pipelines.ingest import open_blocks
from pipelines.recipe import Recipe
from pipelines.recipe_file import dump_recipe
from pipelines.registry import Tracker, register_model
from pipelines.stage import StageResult, once, stage_script
from pipelines.store import Folder, Store, fingerprint
from pipelines.tracking import tracked
from pipelines.train import open_model


@once
def run(recipe: Recipe, store: Store, reporter: Reporter) -> StageResult:
    """Register the recipe's model, or find it registered; the version becomes `challenger`."""
    store.require_local("register")
    blocks = open_blocks(recipe, store, reporter)
    evaluated = run_evaluate(recipe, store, reporter)
    model = open_model(recipe, store, reporter)
    gallery = run_gallery(recipe, store, reporter)
    tracker = Tracker.open(store.uri, experiment=recipe.registry.experiment)
    tags: dict[str, Any] = {
        "data_fingerprint": blocks.fingerprint,
        "protocol": recipe.protocol,
        "gallery": gallery.uri,
        "weights_sha256": model.weights_sha256,
        "evaluation": fingerprint(evaluated.values),
        "recipe": recipe.recipe,
    }
    key = fingerprint(tags["weights_sha256"], gallery.uri, recipe.model_name)
    with tracked(
        tracker,
        "register",
        key,
        stage="register",
        parent=reporter.parent_run,
        params=recipe.to_dict(),
    ) as run_id:
        tracker.log_dataset(
            run_id,
            name=recipe.dataset_title,
            fingerprint=blocks.fingerprint,
            source=blocks.folder.uri,
        )
        version = register_model(
            tracker,
            run_id,
            name=recipe.model_name,
            weights=model.folder.local(WEIGHTS),
            recipe_yaml=dump_recipe(recipe),
            model_card=model.card.to_dict(),
            metrics=evaluated.values["metrics"],
            tags=tags,
        )
    note_model(Folder.open(gallery.uri), {"version": version})
    values = {"model": {"name": recipe.model_name, "version": version}}
    return StageResult(stage="register", skipped=False, uri=tracker.uri, values=values)


if __name__ == "__main__":
    stage_script("register")
