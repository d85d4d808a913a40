"""Who asks and who answers: the queries and the gallery of a protocol.

Shapes: N rows of embeddings, Q queries, G gallery rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError
from pipelines.retrieval.pairs import Rows
from pipelines.retrieval.protocol import Protocol

TEST_SPLITS = ("query", "gallery")


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Row numbers, ascending."""

    queries: Rows
    """[Q]"""
    gallery: Rows
    """[G] without junk, unless the protocol keeps it."""
    junk_removed: int
    """Junk rows that were taken out of the gallery."""


def sides_of(rows: pa.Table, protocol: Protocol, *, draws: int, seed: int) -> Iterator[Sides]:
    """The sides of each draw; of all protocols but `drawn` ones there is one.

    Raises:
        UserError: a split is not there, all of the gallery is junk, or no identity has two images.
    """
    role = rows["role"]
    junk_N = np.asarray(pc.equal(role, "junk")) & (not protocol.keeps_junk)
    if protocol.sides == "split":
        queries = np.flatnonzero(_in_split(rows, "query"))
        yield _sides(queries, _in_split(rows, "gallery"), junk_N)
        return
    test_N = _once(rows, _in_split(rows, *TEST_SPLITS))
    asks_N = test_N & np.asarray(pc.equal(role, "normal"))
    if protocol.sides == "all":
        yield _sides(np.flatnonzero(asks_N), test_N, junk_N)
        return
    named = np.flatnonzero(asks_N & np.asarray(rows["identity"].is_valid()))
    for draw in range(draws):
        drawn_N = _draw_one_each(rows, named, seed, draw)
        yield _sides(np.flatnonzero(asks_N & ~drawn_N), drawn_N | (test_N & ~asks_N), junk_N)


def _sides(queries: Rows, gallery_N: np.ndarray, junk_N: np.ndarray) -> Sides:
    gallery = np.flatnonzero(gallery_N & ~junk_N)
    if not len(gallery):
        raise UserError(f"all {int(gallery_N.sum())} images of the gallery are marked junk")
    if not len(queries):
        raise UserError("no identity has a second image that is neither distractor nor junk")
    return Sides(queries=queries, gallery=gallery, junk_removed=int((gallery_N & junk_N).sum()))


def _once(rows: pa.Table, chosen_N: np.ndarray) -> np.ndarray:
    """bool [N]: the chosen rows, but of an image that stands in both splits the first row alone."""
    chosen = np.flatnonzero(chosen_N)
    keys = rows["key"].take(chosen).combine_chunks().dictionary_encode()
    _, first = np.unique(np.asarray(keys.indices), return_index=True)
    once_N = np.zeros(len(rows), dtype=bool)
    once_N[chosen[first]] = True
    return once_N


def _in_split(rows: pa.Table, *names: str) -> np.ndarray:
    found = np.asarray(pc.is_in(rows["split"], value_set=pa.array(names)))
    if not found.any():
        present = ", ".join(sorted({str(s) for s in pc.unique(rows["split"]).to_pylist()}))
        raise UserError(
            f"the embeddings have no rows with split={names[0]!r} (splits there: {present}): "
            "embed that split first, or name another one"
        )
    return found


def _draw_one_each(rows: pa.Table, among: Rows, seed: int, draw: int) -> np.ndarray:
    """bool [N]: one row of every identity, by chance; the same for the same rows in any order."""
    order = np.asarray(pc.sort_indices(rows["key"].take(among)))
    shuffled = among[order][np.random.default_rng([seed, draw]).permutation(len(among))]
    identity = rows["identity"].take(shuffled).combine_chunks().dictionary_encode()
    _, first = np.unique(np.asarray(identity.indices), return_index=True)
    drawn_N = np.zeros(len(rows), dtype=bool)
    drawn_N[shuffled[first]] = True
    return drawn_N
