"""Parts of an embedding: a choice of them, and each brought to unit length by itself.

A network that joins several features into one embedding weighs them by their lengths; `each_unit`
gives every part the same weight. FusionReID's six features and LA-Transformer's rows are such
parts.

Shapes: n rows, D embedding dimension, E dimensions that are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from pipelines.errors import UserError
from pipelines.retrieval.pairs import Rows
from pipelines.retrieval.settings import Settings
from pipelines.retrieval.vectors import HeldVectors, Vectors, VectorSource

ROWS_AT_ONCE = 4096


class Embeddings(Protocol):
    """Rows with unit vectors, in memory or on disk."""

    @property
    def rows(self) -> pa.Table:
        """[N] the manifest's columns."""
        ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """Names and widths of the parts of a vector, where they are known."""
        ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 over keys and vectors."""
        ...

    def vectors_of(self, index: Rows) -> Vectors:
        """[n, D] vectors of these ascending rows."""
        ...

    def source_of(self, index: Rows) -> VectorSource:
        """The vectors of these ascending rows as blocks."""
        ...


def chosen_parts(embeddings: Embeddings, how: Settings) -> Embeddings:
    """The embeddings with the parts that the settings name, or as they are.

    Raises:
        UserError: see `find_parts`; or each part is to have unit length, and there are no parts.
    """
    if not how.parts and not how.unit_parts:
        return embeddings
    if not how.parts and not embeddings.parts:
        raise UserError(
            "evaluate.unit_parts: these embeddings do not tell their parts; name them with "
            "evaluate.parts=[START:STOP,...]"
        )
    ranges = find_parts(how.parts, embeddings.parts, embeddings.dim)
    return PartsOf(embeddings, Choice(ranges, how.unit_parts))


def find_parts(
    wanted: Sequence[str], named: Sequence[tuple[str, int]], dim: int
) -> tuple[tuple[int, int], ...]:
    """(start, stop) of each wanted part: a name out of `named` (name, width; in their order), or
    `START:STOP`. All named parts where none is wanted.

    Raises:
        UserError: a name that there is not, or a range that is none of 0 to D.
    """
    ends = np.cumsum([0, *(width for _, width in named)]).tolist()
    places = {name: (ends[i], ends[i + 1]) for i, (name, _) in enumerate(named)}
    if not wanted:
        return tuple(places.values())
    return tuple(places[name] if name in places else _range(name, places, dim) for name in wanted)


def _range(text: str, places: dict[str, tuple[int, int]], dim: int) -> tuple[int, int]:
    start, colon, stop = text.partition(":")
    if colon and start.isdigit() and stop.isdigit() and int(start) < int(stop) <= dim:
        return int(start), int(stop)
    names = f"one of {', '.join(places)}, or " if places else ""
    raise UserError(
        f"evaluate.parts: {text!r} is no part of these embeddings; give {names}START:STOP "
        f"between 0 and {dim}"
    )


@dataclass(frozen=True)
class Choice:
    """Which parts of a vector are kept, and how they are joined."""

    ranges: tuple[tuple[int, int], ...]
    """(start, stop) of each part."""
    each_unit: bool
    """Bring each part to unit length before all of them together."""

    @property
    def dim(self) -> int:
        """E."""
        return sum(stop - start for start, stop in self.ranges)

    def pick(self, vectors_nD: Vectors) -> Vectors:
        """[n, E] unit vectors; a part without length stays zero. Memory: the result, and 12 bytes a
        value of 4,096 rows."""
        picked_nE = np.empty((len(vectors_nD), self.dim), dtype=np.float32)
        for low in range(0, len(vectors_nD), ROWS_AT_ONCE):
            rows = vectors_nD[low : low + ROWS_AT_ONCE]
            pieces = [rows[:, start:stop] for start, stop in self.ranges]
            if self.each_unit:
                pieces = [_unit(piece) for piece in pieces]
            picked_nE[low : low + len(rows)] = _unit(np.concatenate(pieces, axis=1))
        return picked_nE


@dataclass(frozen=True)
class PartsOf:
    """Embeddings of which some parts are kept."""

    whole: Embeddings
    choice: Choice

    @property
    def rows(self) -> pa.Table:
        """Those of the whole."""
        return self.whole.rows

    @property
    def dim(self) -> int:
        """E."""
        return self.choice.dim

    @property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """Those that are kept, by their places in the whole."""
        return tuple((f"{start}:{stop}", stop - start) for start, stop in self.choice.ranges)

    @property
    def fingerprint(self) -> str:
        """That of the whole."""
        return self.whole.fingerprint

    def vectors_of(self, index: Rows) -> Vectors:
        """[n, E] unit vectors of these ascending rows."""
        return self.choice.pick(self.whole.vectors_of(index))

    def source_of(self, index: Rows) -> VectorSource:
        """Unit vectors as blocks: held where the whole's are held, else each is made of the whole's
        block when it is asked for."""
        source = self.whole.source_of(index)
        if isinstance(source, HeldVectors):
            return HeldVectors(self.choice.pick(source.vectors))
        return _Picked(source, self.choice)


@dataclass(frozen=True)
class _Picked:
    source: VectorSource
    choice: Choice

    def __len__(self) -> int:
        return len(self.source)

    def blocks(self, width: int) -> Iterator[tuple[int, Vectors]]:
        for first, rows_WD in self.source.blocks(width):
            yield first, self.choice.pick(rows_WD)

    def part(self, low: int, high: int) -> "_Picked":
        return _Picked(self.source.part(low, high), self.choice)


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1)[:, None], dtype=np.float32)
