"""The gallery of a recipe: its embeddings in sharded FAISS, one Ray task a shard."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from pipelines.console import Reporter
from pipelines.embed import run as run_embed
from pipelines.errors import UserError
from pipelines.evaluate import run as run_evaluate
from pipelines.gallery import BuiltShard, ShardJob, build_gallery
from pipelines.gallery.manifest import GALLERY, read_manifest
from pipelines.ray_session import ray_session
from pipelines.recipe import Recipe
from pipelines.recipe_sections import GallerySection
from pipelines.stage import StageResult, once, stage_script
from pipelines.store import Folder, Store, fingerprint
from pipelines.train import open_model


@once
def run(recipe: Recipe, store: Store, reporter: Reporter) -> StageResult:
    """Build the recipe's gallery, or find it built."""
    store.require_local("gallery build")
    evaluated = run_evaluate(recipe, store, reporter)
    embedded = run_embed(recipe, store, reporter)
    model = open_model(recipe, store, reporter)
    settings = recipe.gallery.model_dump()
    print_ = fingerprint(
        Folder.open(embedded.uri).name, recipe.evaluate.model_dump(), settings, recipe.model_name
    )
    folder = store.room("galleries", recipe.title, print_)
    with folder.lock():
        skipped = folder.exists(GALLERY)
        if not skipped:
            made_by = {
                "name": recipe.model_name,
                "version": None,
                "folder": model.folder.uri,
                "weights_sha256": model.weights_sha256,
                "embedding_dim": embedded.values["dimension"],
                "card": model.card.to_dict(),
            }
            figures = {name: evaluated.values[name] for name in ("metrics", "protocol")}
            build(embedded.uri, folder, recipe.gallery, made_by, figures, reporter)
        note_model(folder, {"folder": model.folder.uri})  # it may have moved since
    values = _values(folder)
    return StageResult(stage="gallery", skipped=skipped, uri=folder.uri, values=values)


def build(
    embeddings: str,
    folder: Folder,
    settings: GallerySection,
    made_by: dict[str, Any],
    figures: dict[str, Any] | None,
    reporter: Reporter,
) -> None:
    """Build a gallery of any embeddings, its shards as Ray tasks."""
    with (
        ray_session(verbose=reporter.verbose),
        reporter.bar("gallery", total=settings.shards, unit="shards") as bar,
    ):

        def map_shards(
            build_one: Callable[[ShardJob], BuiltShard], jobs: Sequence[ShardJob]
        ) -> Iterator[BuiltShard]:
            task = ray.remote(num_cpus=1)(build_one)
            pending = [task.remote(job) for job in jobs]
            while pending:
                ready, pending = ray.wait(pending)
                bar.advance(1)
                yield from ray.get(ready)

        build_gallery(
            embeddings,
            folder,
            model=made_by,
            index=settings.index,
            shards=settings.shards,
            evaluation=figures,
            map_shards=map_shards,
        )


def build_file(
    embeddings: str, out: str | None, index: str, shards: int, store_uri: str, reporter: Reporter
) -> dict[str, Any]:
    """Build a gallery of embeddings that were made anywhere; the same JSON as a recipe's
    gallery."""
    if index != "flat":
        raise UserError(f"--index {index}: not supported; there is flat (exact search)")
    name = Path(embeddings.rstrip("/")).stem
    folder = Folder.open(out) if out else Store.open(store_uri).folder / "galleries" / name
    settings = GallerySection(index="flat", shards=shards)
    with folder.lock():
        build(embeddings, folder, settings, {"name": None, "version": None}, None, reporter)
    return _values(folder)


def _values(folder: Folder) -> dict[str, Any]:
    manifest = read_manifest(folder)
    return {
        "gallery": folder.uri,
        "rows": manifest.rows,
        "shards": len(manifest.shards),
        "index": manifest.index,
        "recall": 1.0,  # a flat index is exact
    }


def note_model(folder: Folder, notes: dict[str, Any]) -> None:
    """Write what is known of the gallery's model today into its manifest."""
    manifest = read_manifest(folder)
    if any(manifest.model.get(name) != value for name, value in notes.items()):
        noted = replace(manifest, model={**manifest.model, **notes})
        folder.write_json(GALLERY, noted.to_dict())


if __name__ == "__main__":
    stage_script("gallery_build")
