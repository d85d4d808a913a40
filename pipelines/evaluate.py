"""Embeddings to numbers: the recipe's own, or a file made anywhere."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.console import Reporter
from pipelines.embed import SPLITS
from pipelines.embed import run as run_embed
from pipelines.recipe import Recipe
from pipelines.retrieval import Evaluation, evaluate, load_embeddings
from pipelines.stage import StageResult, once, stage_script
from pipelines.store import Folder, Store, fingerprint


@once
def run(recipe: Recipe, store: Store, reporter: Reporter) -> StageResult:
    """Take the recipe's numbers, or find them taken. They lie beside the embeddings."""
    embedded = run_embed(recipe, store, reporter)
    folder = Folder.open(embedded.uri)
    name = f"evaluation-{recipe.evaluate.protocol}.json"
    skipped = folder.exists(name)
    if not skipped:
        taken = evaluate_file(
            folder.uri, recipe.evaluate.protocol, flip=(folder.committed() or {})["flip"]
        )
        with folder.write(_queries_file(recipe)) as file:
            pq.write_table(taken.per_query, file)
        folder.write_json(name, as_json(taken))
    values = folder.read_json(name)
    return StageResult(stage="evaluate", skipped=skipped, uri=folder.uri, values=values)


def _queries_file(recipe: Recipe) -> str:
    return f"evaluation-{recipe.evaluate.protocol}-queries.parquet"


def read_per_query(recipe: Recipe, uri: str) -> pa.Table:
    """The queries' own figures: key, ap, ap_trapezoid, inp, matches, first_hit_rank."""
    folder = Folder.open(uri)
    with folder.fs.open(folder.path(_queries_file(recipe)), "rb") as file:
        return pq.read_table(file)


def evaluate_file(uri: str, protocol: str, *, flip: bool | None = None) -> Evaluation:
    """The figures of an embeddings file, or of a folder of part files.

    Memory: the query and gallery vectors in float32, and a bounded band of similarities.
    """
    return evaluate(load_embeddings(uri, splits=SPLITS), protocol=protocol, flip=flip)


def as_json(taken: Evaluation) -> dict[str, Any]:
    """`metrics` in percent, `protocol`, and the CMC curve."""
    plain = {"metrics": taken.metrics, "protocol": taken.protocol, "cmc": list(taken.cmc)}
    return {**plain, "fingerprint": fingerprint(plain)}


if __name__ == "__main__":
    stage_script("evaluate")
