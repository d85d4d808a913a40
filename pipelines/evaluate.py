"""Embeddings to numbers: the recipe's own, or a file made anywhere."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.blocks import Blocks, read_shard
from pipelines.console import Reporter
from pipelines.embed import SPLITS
from pipelines.embed import run as run_embed
from pipelines.errors import UserError
from pipelines.ingest import open_blocks
from pipelines.recipe import Recipe
from pipelines.retrieval import Evaluation, evaluate, load_embeddings, usable_queries
from pipelines.stage import StageResult, once, stage_script
from pipelines.store import Folder, Store, fingerprint
from pipelines.train import require_named


@once
def run(recipe: Recipe, store: Store, reporter: Reporter) -> StageResult:
    """Take the recipe's numbers, or find them taken. They lie beside the embeddings."""
    store.require_local("evaluate")
    require_named(recipe)
    require_scorable(open_blocks(recipe, store, reporter), recipe.evaluate.protocol)
    embedded = run_embed(recipe, store, reporter)
    folder = Folder.open(embedded.uri)
    name = f"evaluation-{recipe.evaluate.protocol}.json"
    skipped = folder.exists(name)
    if not skipped:
        taken = evaluate_file(folder.uri, recipe.evaluate.protocol)
        with folder.write(_queries_file(recipe)) as file:
            pq.write_table(taken.per_query, file)
        folder.write_json(name, as_json(taken))
    values = folder.read_json(name)
    return StageResult(stage="evaluate", skipped=skipped, uri=folder.uri, values=values)


def require_scorable(blocks: Blocks, protocol: str) -> None:
    """Refuse data on which the protocol has nothing to count, before anything is trained.

    Memory: the labels of the query and gallery images.
    """
    query, gallery = (_labels(blocks, split) for split in SPLITS)
    usable_queries(query, gallery.filter(pc.not_equal(gallery["role"], "junk")), protocol=protocol)


def _labels(blocks: Blocks, split: str) -> pa.Table:
    columns = ["key", "identity", "camera", "role"]
    shards = blocks.shards(split)
    if not sum(shard["rows"] for shard in shards):
        raise UserError(f"{blocks.folder.uri}: no {split} images, so nothing can be evaluated")
    return pa.concat_tables(read_shard(blocks.folder, s["shard"], columns) for s in shards)


def _queries_file(recipe: Recipe) -> str:
    return f"evaluation-{recipe.evaluate.protocol}-queries.parquet"


def read_per_query(recipe: Recipe, uri: str) -> pa.Table:
    """The queries' own figures: key, ap, ap_trapezoid, inp, matches, first_hit_rank."""
    folder = Folder.open(uri)
    with folder.fs.open(folder.path(_queries_file(recipe)), "rb") as file:
        return pq.read_table(file)


def evaluate_file(uri: str, protocol: str) -> Evaluation:
    """The figures of an embeddings file, or of a folder of part files.

    What `reid embed` notes beside its parts (flip, the junk it left out) goes into the protocol.

    Memory: the query and gallery vectors in float32, and a bounded band of similarities.
    """
    notes = Folder.open(uri).committed()
    notes = notes if isinstance(notes, dict) and "weights_sha256" in notes else {}
    return evaluate(
        load_embeddings(uri, splits=SPLITS),
        protocol=protocol,
        flip=notes.get("flip"),
        junk_left_out=notes.get("junk_left_out", 0),
    )


def as_json(taken: Evaluation) -> dict[str, Any]:
    """`metrics` in percent, `protocol`, and the CMC curve."""
    plain = {"metrics": taken.metrics, "protocol": taken.protocol, "cmc": list(taken.cmc)}
    return {**plain, "fingerprint": fingerprint(plain)}


if __name__ == "__main__":
    stage_script("evaluate")
