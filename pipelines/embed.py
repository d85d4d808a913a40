"""Images to embeddings: Ray Data batch inference over the query and gallery blocks.

The unit of work is a part of at most `embed.rows_per_part` rows of one shard. CPU tasks decode a
part, an actor that holds the model embeds it, and the part is written as one Parquet file under
its final name; a killed run goes on with the parts that are missing. The result does not depend on
the number of actors.

Memory: a part of decoded pixels and its embeddings in each task or actor, whatever the gallery's
size.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import torch

from pipelines.blocks import Blocks, read_shard
from pipelines.console import Reporter
from pipelines.datasets.manifest import MANIFEST_SCHEMA
from pipelines.embedder import WEIGHTS, Embedder, ModelCard
from pipelines.images import Interpolation, decode
from pipelines.ingest import open_blocks
from pipelines.ray_session import ray_session, slots
from pipelines.recipe import EmbedSection, Recipe
from pipelines.stage import StageResult, once, stage_script
from pipelines.store import Folder, Store, fingerprint
from pipelines.train import ModelFolder, open_model

SPLITS = ("query", "gallery")
ROW_COLUMNS = list(MANIFEST_SCHEMA.names)


@once
def run(recipe: Recipe, store: Store, reporter: Reporter) -> StageResult:
    """Make the recipe's embeddings, or find them made."""
    blocks = open_blocks(recipe, store, reporter)
    model = open_model(recipe, store, reporter)
    settings = recipe.embed.model_dump(exclude={"workers"})
    print_ = fingerprint(blocks.fingerprint, model.weights_sha256, settings)
    folder = store.room("embeddings", recipe.model_name, print_)
    with folder.lock():
        done = folder.committed()
        skipped = done is not None
        if done is None:
            with ray_session(verbose=reporter.verbose):
                done = _embed(recipe, blocks, model, folder, reporter)
    return StageResult(
        stage="embed",
        skipped=skipped,
        uri=folder.uri,
        values={"embeddings": folder.uri, "rows": done["rows"], "dimension": done["dimension"]},
    )


@dataclass(frozen=True)
class Part:
    """A run of rows of one shard, and the file its embeddings go to."""

    number: int
    shard: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        """Name of the output file."""
        return f"part-{self.number:05d}.parquet"


def plan_parts(blocks: Blocks, rows_per_part: int) -> list[Part]:
    """The parts of all query and gallery shards, in shard order."""
    spans = [
        (shard["shard"], start, min(start + rows_per_part, shard["rows"]))
        for split in SPLITS
        for shard in blocks.shards(split)
        for start in range(0, shard["rows"], rows_per_part)
    ]
    return [Part(number, *span) for number, span in enumerate(spans)]


@dataclass(frozen=True)
class PartDecoder:
    """A Ray Data task: the rows of a part with their pixels."""

    folder: Folder
    cameras: tuple[str, ...]
    size: tuple[int, int]
    interpolation: Interpolation

    def __call__(self, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        part = Part(*(int(row[name][0]) for name in ("number", "shard", "start", "stop")))
        rows = read_shard(self.folder, part.shard).slice(part.start, part.stop - part.start)
        rows = rows.filter(pc.not_equal(rows["role"], "junk"))
        known = {name: i for i, name in enumerate(self.cameras)}
        pixels = [
            decode(image.as_buffer(), self.size, self.interpolation) for image in rows["image"]
        ]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.select(ROW_COLUMNS).schema) as writer:
            writer.write_table(rows.select(ROW_COLUMNS))
        camera = np.array([known.get(c, -1) for c in rows["camera"].to_pylist()], dtype=np.int64)
        image = np.stack(pixels) if pixels else np.zeros((0, *self.size, 3), dtype=np.uint8)
        # One row a part: it stays in one block, whatever its size, and one call embeds it.
        return {
            "number": row["number"],
            "rows": _one(sink.getvalue().to_pybytes()),
            "camera": _one(camera.tobytes()),
            "image": _one(image.tobytes()),
        }


def _one(value: bytes) -> np.ndarray:
    column = np.empty(1, dtype=object)
    column[0] = value
    return column


class PartEmbedder:
    """A Ray Data actor: holds the model, embeds parts and writes their files."""

    def __init__(
        self,
        out: Folder,
        card: ModelCard,
        weights: Path,
        settings: EmbedSection,
        gpu: bool,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        self.out, self.batch_size, self.dtype = out, settings.batch_size, settings.dtype
        self.embedder = Embedder(card, weights, "cuda" if gpu else "cpu")

    def __call__(self, part: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        number = int(part["number"][0])
        with pa.ipc.open_stream(part["rows"][0]) as reader:
            rows = reader.read_all()
        camera_B = np.frombuffer(part["camera"][0], dtype=np.int64)
        image_BHW3 = np.frombuffer(part["image"][0], dtype=np.uint8)
        image_BHW3 = image_BHW3.reshape(len(camera_B), *self.embedder.card.image_size, 3)
        pieces = [
            self.embedder.embed(
                image_BHW3[i : i + self.batch_size], camera_B[i : i + self.batch_size]
            )
            for i in range(0, len(camera_B), self.batch_size)
        ]
        dimension = self.embedder.card.embedding_dim
        embedding_BD = np.concatenate(pieces) if pieces else np.zeros((0, dimension), np.float32)
        flat = pa.array(embedding_BD.astype(self.dtype).reshape(-1))
        table_ = rows.append_column("embedding", pa.FixedSizeListArray.from_arrays(flat, dimension))
        with self.out.write(Part(number, 0, 0, 0).file) as file:
            pq.write_table(table_, file)
        return {"number": part["number"], "rows": np.array([table_.num_rows])}


def _embed(
    recipe: Recipe, blocks: Blocks, model: ModelFolder, out: Folder, reporter: Reporter
) -> dict[str, Any]:
    out.make()
    parts = plan_parts(blocks, recipe.embed.rows_per_part)
    missing = [part for part in parts if not out.exists(part.file)]
    card = replace(model.card, flip=recipe.embed.flip)
    decoder = PartDecoder(blocks.folder, card.cameras, card.image_size, card.interpolation)
    gpu = slots("GPU") > 0
    arguments = {
        "out": out,
        "card": card,
        "weights": model.path / WEIGHTS,
        "settings": recipe.embed,
        "gpu": gpu,
        "threads": max(1, (os.cpu_count() or 1) // recipe.embed.workers),
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
        "parts": len(parts),
        "dimension": card.embedding_dim,
        "dtype": recipe.embed.dtype,
        "data_fingerprint": blocks.fingerprint,
        "weights_sha256": model.weights_sha256,
        "flip": recipe.embed.flip,
    }
    out.commit(manifest)
    return manifest


if __name__ == "__main__":
    stage_script("embed")
