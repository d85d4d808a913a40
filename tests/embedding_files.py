"""Embedding tables for tests: small, and with exact arithmetic where ties matter."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.retrieval import EmbeddingSet, load_embeddings


def sign_vectors(rng: np.random.Generator, count: int, dim: int = 64) -> np.ndarray:
    """[count, dim] float32 of +-1: of length 8 for 64 dimensions, so every cosine is exact and
    many are equal."""
    return rng.choice(np.array([-1.0, 1.0], dtype=np.float32), size=(count, dim))


def embedding_table(
    vectors_ND: np.ndarray,
    *,
    identity: Sequence[object],
    camera: Sequence[object] | None = None,
    split: Sequence[str] | str = "gallery",
    role: Sequence[str] | None = None,
    key: Sequence[str] | None = None,
) -> pa.Table:
    """A table in the layout of an embeddings file; columns not given are left out."""
    count = len(vectors_ND)
    columns: dict[str, object] = {
        "key": list(key) if key is not None else [f"image-{i:05d}" for i in range(count)],
        "identity": list(identity),
        "split": [split] * count if isinstance(split, str) else list(split),
    }
    if camera is not None:
        columns["camera"] = list(camera)
    if role is not None:
        columns["role"] = list(role)
    flat = pa.array(np.ascontiguousarray(vectors_ND).reshape(-1))
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1])
    return pa.table(columns)


def embedding_set(folder: Path, table: pa.Table) -> EmbeddingSet:
    """The table as it comes out of a file."""
    path = folder / "embeddings.parquet"
    pq.write_table(table, path)
    return load_embeddings(path)


def random_table(seed: int, *, queries: int = 40, gallery: int = 150) -> pa.Table:
    """Few identities and cameras, unknown ones among them, junk, distractors, shared keys, ties."""
    rng = np.random.default_rng(seed)
    count = queries + gallery
    identity = [f"id-{i}" for i in rng.integers(0, 12, count)]
    camera = [None if c == 0 else f"c{c}" for c in rng.integers(0, 4, count)]
    role = ["normal"] * queries + list(
        rng.choice(["normal", "distractor", "junk"], gallery, p=[0.7, 0.2, 0.1])
    )
    split = ["query"] * queries + ["gallery"] * gallery
    key = [f"q{i}" for i in range(queries)] + [f"g{i}" for i in range(gallery)]
    vectors = sign_vectors(rng, count)
    for query in range(0, queries, 5):
        # the same image on both sides
        row = queries + query
        key[row], identity[row], camera[row] = key[query], identity[query], camera[query]
        vectors[row] = vectors[query]
    copies = rng.integers(queries, count, (30, 2))
    vectors[copies[:, 0]] = vectors[copies[:, 1]]
    return embedding_table(
        vectors, identity=identity, camera=camera, split=split, role=role, key=key
    )
