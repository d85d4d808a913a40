"""Unit vectors with planted identities: what an evaluation's time and memory are measured on.

An image is its identity's direction plus noise of a length that gives figures such as trained
networks have; cameras add a small direction of their own.

Shapes: N rows, D embedding dimension.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.datasets.manifest import MANIFEST_SCHEMA
from pipelines.retrieval import EmbeddingSet

PART_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Sizes of a benchmark."""

    queries: int
    gallery: int
    dim: int
    identities: int
    cameras: int
    distractors: int = 0
    """Gallery images beyond `gallery` that belong to nobody who is asked for."""
    noise: float = 2.5
    """Length of an image's own part; its identity's has length 1."""

    def embeddings(self, seed: int = 0) -> EmbeddingSet:
        """Queries first, then the gallery."""
        rng = np.random.default_rng(seed)
        total = self.queries + self.gallery + self.distractors
        person = rng.integers(0, self.identities, total)
        person[self.queries + self.gallery :] = -1
        camera = rng.integers(0, self.cameras, total)
        centre = _directions(rng, self.identities + 1, self.dim)
        place = _directions(rng, self.cameras, self.dim)
        vectors_ND = np.empty((total, self.dim), dtype=np.float32)
        for low in range(0, total, PART_ROWS):
            part = slice(low, min(low + PART_ROWS, total))
            own = self.noise * _directions(rng, part.stop - low, self.dim)
            known = (person[part] >= 0)[:, None]
            own += known * centre[person[part]] + 0.3 * place[camera[part]]
            vectors_ND[part] = own / np.linalg.norm(own, axis=1, keepdims=True)
        return EmbeddingSet(rows=_rows(person, camera, self.queries), vectors=vectors_ND)

    def write(self, path: Path, seed: int = 0) -> None:
        """The same as an embeddings file of float32."""
        found = self.embeddings(seed)
        kind = pa.list_(pa.float32(), self.dim)
        schema = pa.schema([*MANIFEST_SCHEMA, ("embedding", kind)])
        with pq.ParquetWriter(path, schema, compression="NONE", use_dictionary=False) as writer:
            for low in range(0, len(found), 8192):
                rows = found.rows.slice(low, 8192)
                flat = pa.array(found.vectors[low : low + 8192].reshape(-1))
                column = pa.FixedSizeListArray.from_arrays(flat, self.dim)
                writer.write_table(rows.append_column("embedding", column).cast(schema))


def _directions(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((count, dim), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def _rows(person: np.ndarray, camera: np.ndarray, queries: int) -> pa.Table:
    total = len(person)
    names = [f"id-{p}" if p >= 0 else "nobody" for p in person.tolist()]
    values = {
        "key": [f"{i:07d}" for i in range(total)],
        "identity": names,
        "camera": [f"c{c}" for c in camera.tolist()],
        "domain": ["planted"] * total,
        "split": ["query"] * queries + ["gallery"] * (total - queries),
        "role": ["normal" if p >= 0 else "distractor" for p in person.tolist()],
    }
    columns = {field.name: values.get(field.name, [None] * total) for field in MANIFEST_SCHEMA}
    return pa.table(columns, schema=MANIFEST_SCHEMA)
