"""What embedding tasks and actors run: decode a part of a shard, embed it, write it.

Decoding tasks import no torch: only the actor's constructor does.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.blocks import read_rows
from pipelines.datasets.manifest import MANIFEST_SCHEMA
from pipelines.embedding_parts import with_parts
from pipelines.images import Interpolation, decode
from pipelines.recipe_sections import EmbedSection
from pipelines.store import Folder

if TYPE_CHECKING:
    from pipelines.embedder import ModelCard

ROW_COLUMNS = list(MANIFEST_SCHEMA.names)


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


@dataclass(frozen=True)
class PartDecoder:
    """A Ray Data task: the rows of a part with their pixels."""

    folder: Folder
    cameras: tuple[str, ...]
    size: tuple[int, int]
    interpolation: Interpolation
    keeps_junk: bool = False

    def __call__(self, row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        part = Part(*(int(row[name][0]) for name in ("number", "shard", "start", "stop")))
        rows = read_rows(self.folder, part.shard, part.start, part.stop)
        if not self.keeps_junk:
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
        card: "ModelCard",
        weights: Path,
        settings: EmbedSection,
        gpu: bool,
    ) -> None:
        import torch

        from pipelines.embedder import Embedder

        torch.set_num_threads(max(1, (os.cpu_count() or 1) // settings.workers))
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
        table_ = with_parts(table_, self.embedder.model.embedding_parts)
        with self.out.write(Part(number, 0, 0, 0).file) as file:
            pq.write_table(table_, file)
        return {"number": part["number"], "rows": np.array([table_.num_rows])}
