"""Images to embeddings: Ray Data batch inference over the query and gallery blocks.

The unit of work is a part of at most `embed.rows_per_part` rows of one shard. CPU tasks decode a
part, an actor that holds the model embeds it, and the part is written as one Parquet file under
its final name; a killed run goes on with the parts that are missing. The result does not depend on
the number of actors.

Memory: a part of decoded pixels and its embeddings in each task or actor, whatever the gallery's
size.
"""

from typing import Any

import pyarrow.parquet as pq
import ray

from pipelines.blocks import Blocks
from pipelines.console import Reporter
from pipelines.embed_parts import Part, PartDecoder, PartEmbedder
from pipelines.embedder import WEIGHTS
from pipelines.errors import UserError
from pipelines.ingest import open_blocks
from pipelines.ray_session import ray_session, slots
from pipelines.recipe import Recipe
from pipelines.retrieval.protocol import find_protocol
from pipelines.stage import StageResult, once, stage_script
from pipelines.store import Folder, Store, fingerprint
from pipelines.train import ModelFolder, open_model, require_named

SPLITS = ("query", "gallery")


@once
def run(recipe: Recipe, store: Store, reporter: Reporter) -> StageResult:
    """Make the recipe's embeddings, or find them made."""
    store.require_local("embed")
    require_named(recipe)
    blocks = open_blocks(recipe, store, reporter)
    model = open_model(recipe, store, reporter)
    settings = recipe.embed.model_dump(exclude={"workers", "model"})
    if _keeps_junk(recipe):
        settings["junk"] = True
    # A part's number means other rows where the shards are cut otherwise.
    parts = plan_parts(blocks, recipe.embed.rows_per_part)
    plan = [(part.shard, part.start, part.stop) for part in parts]
    card = model.card.to_dict()
    print_ = fingerprint(blocks.fingerprint, model.weights_sha256, card, settings, plan)
    folder = store.room("embeddings", recipe.title, print_)
    with folder.lock():
        done = folder.committed()
        skipped = done is not None
        if done is None:
            with ray_session(verbose=reporter.verbose):
                done = _embed(recipe, blocks, model, folder, parts, reporter)
    return StageResult(
        stage="embed",
        skipped=skipped,
        uri=folder.uri,
        values={"embeddings": folder.uri, "rows": done["rows"], "dimension": done["dimension"]},
    )


def _keeps_junk(recipe: Recipe) -> bool:
    """Whether the evaluation ranks junk images, so that they must be embedded too."""
    return find_protocol(recipe.protocol).keeps_junk


def plan_parts(blocks: Blocks, rows_per_part: int) -> list[Part]:
    """The parts of all query and gallery shards, in shard order."""
    spans = [
        (shard["shard"], start, min(start + rows_per_part, shard["rows"]))
        for split in SPLITS
        for shard in blocks.shards(split)
        for start in range(0, shard["rows"], rows_per_part)
    ]
    return [Part(number, *span) for number, span in enumerate(spans)]


def _embed(
    recipe: Recipe,
    blocks: Blocks,
    model: ModelFolder,
    out: Folder,
    parts: list[Part],
    reporter: Reporter,
) -> dict[str, Any]:
    require_room(recipe)
    out.make()
    missing = [part for part in parts if not out.exists(part.file)]
    card = model.card
    decoder = PartDecoder(
        blocks.folder, card.cameras, card.image_size, card.interpolation, _keeps_junk(recipe)
    )
    gpu = slots("GPU") > 0
    arguments = {
        "out": out,
        "card": card,
        "weights": model.path / WEIGHTS,
        "settings": recipe.embed,
        "gpu": gpu,
    }
    with reporter.bar("embed", total=len(parts), unit="parts") as bar:
        bar.to(len(parts) - len(missing))
        if missing:
            rows = [vars(part) for part in missing]
            written = (
                ray.data.from_items(rows, override_num_blocks=len(rows))
                .map_batches(decoder, batch_size=1, num_cpus=1)
                .map_batches(
                    PartEmbedder,
                    batch_size=1,
                    fn_constructor_kwargs=arguments,
                    compute=ray.data.ActorPoolStrategy(size=recipe.embed.workers),
                    num_gpus=1 if gpu else 0,
                    num_cpus=1,
                )
            )
            for _ in written.iter_rows():
                bar.advance(1)
    counts = [pq.read_metadata(out.fs.open(out.path(part.file), "rb")).num_rows for part in parts]
    manifest = {
        "rows": sum(counts),
        "junk_left_out": _junk_left_out(blocks, parts, counts),
        "parts": len(parts),
        "dimension": card.embedding_dim,
        "dtype": recipe.embed.dtype,
        "dataset": recipe.dataset,
        "data_fingerprint": blocks.fingerprint,
        "weights_sha256": model.weights_sha256,
        "flip": recipe.embed.flip,
        "precision": recipe.embed.precision,
    }
    out.commit(manifest)
    return manifest


def _junk_left_out(blocks: Blocks, parts: list[Part], counts: list[int]) -> int:
    gallery = {shard["shard"] for shard in blocks.shards("gallery")}
    return sum(
        part.stop - part.start - count
        for part, count in zip(parts, counts, strict=True)
        if part.shard in gallery
    )


def require_room(recipe: Recipe) -> None:
    """Refuse more embedding actors than the connected cluster can start."""
    workers, gpus = recipe.embed.workers, slots("GPU")
    needed = workers + 1
    if slots("CPU") < needed:
        raise UserError(
            f"the cluster has {slots('CPU'):.0f} CPUs; embed.workers={workers} and the decoding "
            f"tasks need {needed}"
        )
    if 0 < gpus < workers:
        raise UserError(f"embed.workers={workers}, but the cluster has {gpus:.0f} GPUs: lower it")


if __name__ == "__main__":
    stage_script("embed")
