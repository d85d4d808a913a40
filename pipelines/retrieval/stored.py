"""Embeddings that stay in their files: rows in memory, vectors read as they are needed.

Shapes: N rows, D embedding dimension, W rows of a block.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.retrieval.embeddings import (
    EmbeddingSet,
    Source,
    check_keys,
    embedding_files,
    iter_unit_vectors,
    read_parts,
    read_rows,
)
from pipelines.retrieval.pairs import Rows
from pipelines.retrieval.vectors import Vectors, VectorSource

HOLD_MB = 2048


@dataclass(frozen=True)
class StoredVectors:
    """Vectors in Parquet files, read anew for every pass; memory: one block and one batch of a
    file."""

    files: tuple[tuple[str, Rows], ...]
    """(address, ascending row numbers in the file), in the order of the rows."""
    dim: int
    first: int = 0
    """Number of the first row, where this is a part of a gallery."""

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.files)

    def blocks(self, width: int) -> Iterator[tuple[int, Vectors]]:
        """Blocks of `width` rows, the last one smaller; each is overwritten by the next."""
        block_WD = np.empty((min(width, len(self)), self.dim), dtype=np.float32)
        start, filled = self.first, 0
        for address, rows in self.files:
            for piece_BD in iter_unit_vectors(address, rows):
                taken = 0
                while taken < len(piece_BD):
                    size = min(len(piece_BD) - taken, len(block_WD) - filled)
                    block_WD[filled : filled + size] = piece_BD[taken : taken + size]
                    taken, filled = taken + size, filled + size
                    if filled == len(block_WD):
                        yield start, block_WD
                        start, filled = start + filled, 0
        if filled:
            yield start, block_WD[:filled]

    def part(self, low: int, high: int) -> "StoredVectors":
        """Some rows of the same files."""
        ends = np.cumsum([0, *(len(rows) for _, rows in self.files)])
        pieces = [
            (address, rows[max(0, low - start) : max(0, high - start)])
            for (address, rows), start in zip(self.files, ends[:-1], strict=True)
        ]
        kept = tuple((address, rows) for address, rows in pieces if len(rows))
        return StoredVectors(kept, self.dim, self.first + low)

    def read(self) -> Vectors:
        """All of them: [n, D]."""
        for _, block_WD in self.blocks(max(1, len(self))):
            return block_WD
        return np.empty((0, self.dim), dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class StoredEmbeddings:
    """Embeddings files; memory: the rows, and what is asked for."""

    rows: pa.Table
    """[N] the manifest's columns, see `MANIFEST_SCHEMA`."""
    dim: int
    files: tuple[str, ...]
    kept: tuple[Rows, ...] = field(repr=False)
    """The rows of each file that are rows of this set."""
    parts: tuple[tuple[str, int], ...] = ()
    """Names and widths of the parts of an embedding, where they are known."""
    hold_mb: int = HOLD_MB
    """Vectors that take no more than this are read once and held; others are read block by block,
    for every pass anew."""

    @property
    def is_held(self) -> bool:
        """Whether all vectors are in memory, once one was asked for."""
        return len(self.rows) * self.dim * 4 <= self.hold_mb << 20

    def vectors_of(self, index: Rows) -> Vectors:
        """[n, D] vectors of these ascending rows; of held ones a view where the rows stand side by
        side."""
        return self._held.vectors_of(index) if self.is_held else self._stored(index).read()

    def source_of(self, index: Rows) -> VectorSource:
        """The vectors of these ascending rows as blocks."""
        return self._held.source_of(index) if self.is_held else self._stored(index)

    @cached_property
    def fingerprint(self) -> str:
        """As `EmbeddingSet.fingerprint`; reads all vectors that are not held."""
        if self.is_held:
            return self._held.fingerprint
        digest = hashlib.sha256("\n".join(self.rows["key"].to_pylist()).encode())
        for address, rows in zip(self.files, self.kept, strict=True):
            for block_WD in iter_unit_vectors(address, rows):
                digest.update(np.ascontiguousarray(block_WD).data)
        return digest.hexdigest()

    @cached_property
    def _held(self) -> EmbeddingSet:
        everything = self._stored(np.arange(len(self.rows)))
        return EmbeddingSet(rows=self.rows, vectors=everything.read(), parts=self.parts)

    def _stored(self, index: Rows) -> StoredVectors:
        ends = np.cumsum([0, *map(len, self.kept)])
        cuts = np.searchsorted(index, ends)
        chosen = [
            (address, rows[index[low:high] - start])
            for address, rows, start, low, high in zip(
                self.files, self.kept, ends[:-1], cuts[:-1], cuts[1:], strict=True
            )
        ]
        return StoredVectors(tuple((a, rows) for a, rows in chosen if len(rows)), self.dim)


def open_embeddings(
    source: Source, *, splits: tuple[str, ...], hold_mb: int = HOLD_MB
) -> StoredEmbeddings:
    """The rows of these splits in a Parquet file, a folder of `part-*.parquet`, or a list of files.

    Raises:
        UserError: nothing to read, a column missing or of the wrong type, two dimensions, or a key
            twice in one split; vectors are checked when they are read.
    """
    files = embedding_files(source)
    dim, tables = read_rows(files)
    wanted = pa.array(splits, pa.string())
    kept = [
        np.flatnonzero(np.asarray(pc.is_in(table["split"], value_set=wanted))) for table in tables
    ]
    rows = pa.concat_tables([table.take(k) for table, k in zip(tables, kept, strict=True)])
    check_keys(rows)
    return StoredEmbeddings(
        rows=rows,
        dim=dim,
        files=tuple(files),
        kept=tuple(kept),
        parts=read_parts(files[0]),
        hold_mb=hold_mb,
    )
