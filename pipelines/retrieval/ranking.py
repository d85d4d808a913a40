"""Exact ranks of the right answers, counted in tiles of queries by gallery rows.

The rank of a right answer is how many rows come before it, so it is counted: a tile of scores gives
up the few wrong rows at or above the query's lowest right answer, those are sorted, and every right
answer finds its place among them. No tile outlives its turn, no row is sorted whole, and the counts
of different parts of a gallery add up. Highest score first; of equal scores the wrong row comes
first, so that a network that has collapsed to a point gets nothing from the gallery's order. Scores
that float32 cannot tell apart are taken in float64: the ranks do not depend on tiles or parts.

Shapes: Q queries, G gallery rows, B queries and W gallery rows of a tile, D embedding dimension,
P (query, right answer) pairs.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from pipelines.retrieval.exact_scores import exact_near, exact_pairs
from pipelines.retrieval.pairs import Pairs, Rows
from pipelines.retrieval.rounding import ExactScores
from pipelines.retrieval.scorers import Scorer
from pipelines.retrieval.scores import Histogram, floor_of_sample
from pipelines.retrieval.tile_counts import NEAR, RightAnswers, TileCounts, count_before
from pipelines.retrieval.vectors import Vectors, VectorSource

TILE_QUERIES = 512
DEFAULT_MEMORY_MB = 64
NARROW = 4096
"""Tiles are lower than TILE_QUERIES before they are narrower than this."""
SMALLEST = 128
"""A tile has at least so many scores."""
CHUNK = 1 << 20
"""Scores of a tile that are looked at together; bounds what is kept of them."""
OUT = np.float32(-np.inf)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is ranked."""

    scorer: Scorer
    gallery: VectorSource
    good: Pairs
    """Right answers; every query has one."""
    removed: Pairs
    """Rows that a query's ranking leaves out."""
    camera: Rows | None = None
    """[G] camera codes; with them ranks are counted among the rows of each camera as well."""

    @property
    def queries(self) -> int:
        """Q."""
        return len(self.good.start) - 1


@dataclass(kw_only=True)
class Ranking:
    """What was counted. Rankings of parts of a gallery add up."""

    before: Rows
    """[P] wrong rows before the right answer, removed ones not counted."""
    camera_before: Rows | None
    """[P] those under the right answer's own camera."""
    best_wrong: Vectors
    """[Q] the highest score of a row that is not a right answer; -inf where none reaches the floor
    or the query's lowest right answer. To the rounding of float32, as are the scores below."""
    wrong: Histogram
    """Scores of all such rows."""

    @classmethod
    def empty(cls, task: "Task", floor: float = -np.inf) -> "Ranking":
        """Nothing counted."""
        pairs = len(task.good)
        return cls(
            before=np.zeros(pairs, dtype=np.int64),
            camera_before=None if task.camera is None else np.zeros(pairs, dtype=np.int64),
            best_wrong=np.full(task.queries, OUT),
            wrong=Histogram.empty(floor),
        )

    def add(self, other: "Ranking") -> None:
        """Take in the counts of another part of the gallery."""
        self.before += other.before
        if self.camera_before is not None and other.camera_before is not None:
            self.camera_before += other.camera_before
        np.maximum(self.best_wrong, other.best_wrong, out=self.best_wrong)
        self.wrong.add(other.wrong)


def score_pairs(task: Task, *, memory_mb: int = DEFAULT_MEMORY_MB) -> tuple[ExactScores, Histogram]:
    """[P] float64 scores of the right answers that lie in this gallery (0 for the others), and a
    sample of all scores.

    First of two passes over the gallery; it makes no tile, only one product a pair.
    """
    score_P = np.zeros(len(task.good), dtype=np.float64)
    order_P = np.argsort(task.good.row, kind="stable")
    row_P, query_P = task.good.row[order_P], task.good.query[order_P]
    sample = Histogram.empty()
    for first, rows_WD in task.gallery.blocks(_tile_shape(task, memory_mb)[1]):
        low, high = np.searchsorted(row_P, (first, first + len(rows_WD)))
        here = slice(low, high)
        score_P[order_P[here]] = exact_pairs(
            task.scorer, query_P[here], row_P[here] - first, first, rows_WD
        )
        sample.add(_sample(task, first, rows_WD))
    return score_P, sample


def count_ranks(
    task: Task,
    score_P: ExactScores,
    *,
    floor: float = -np.inf,
    memory_mb: int = DEFAULT_MEMORY_MB,
) -> Ranking:
    """Count, for every right answer, the rows of this gallery that come before it.

    Second pass over the gallery.

    Args:
        task: what is ranked.
        score_P: from `score_pairs`, of all parts of the gallery together.
        floor: wrong answers below it are counted, but not by their score.
        memory_mb: size of a tile of scores: B (at most 512) x W x 4 bytes.

    Memory: the tile, and as many bytes again for the scores that are kept of it; up to 80 bytes a
    kept score of the chunks in work, of which there is one a thread; the block of gallery vectors
    where they are read from disk; a few numbers a pair.
    """
    ranking = Ranking.empty(task, floor)
    height, width = _tile_shape(task, memory_mb)
    tile = np.empty(height * width, dtype=np.float32)
    lowest_Q = np.minimum.reduceat(score_P, task.good.start[:-1])
    least_Q = np.minimum(lowest_Q - 2 * NEAR, floor).astype(np.float32)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for first, rows_WD in task.gallery.blocks(width):
            for low in range(0, task.queries, height):
                high = min(low + height, task.queries)
                scores_BW = tile[: (high - low) * len(rows_WD)].reshape(high - low, len(rows_WD))
                task.scorer.tile(low, high, first, rows_WD, scores_BW)
                left_out = _leave_out(task, scores_BW, low, first)
                ranking.wrong.total += scores_BW.size - left_out
                count = partial(_count_rows, task, scores_BW, (low, first), rows_WD, score_P)
                for counts, queries in pool.map(partial(count, least_Q), _rows(low, scores_BW)):
                    _add(ranking, counts, queries, task.good)
    return ranking


def rank_all(task: Task, *, memory_mb: int = DEFAULT_MEMORY_MB) -> tuple[ExactScores, Ranking]:
    """([P] scores, ranking) of a whole gallery in this process: both passes."""
    score_P, sample = score_pairs(task, memory_mb=memory_mb)

    def count(floor: float) -> Ranking:
        return count_ranks(task, score_P, floor=floor, memory_mb=memory_mb)

    return score_P, count_above_floor(task, sample, count)


def count_above_floor(task: Task, sample: Histogram, count: Callable[[float], Ranking]) -> Ranking:
    """The ranking that `count` gives with the floor that the sample suggests; where the sample
    misled, with none."""
    ranking = count(floor_of_sample(sample, task.queries * len(task.gallery)))
    return ranking if ranking.wrong.reaches_down() else count(-np.inf)


def _leave_out(task: Task, scores_BW: Vectors, low: int, first: int) -> int:
    """Overwrite right answers and removed rows, so that wrong ones stay; returns how many."""
    left_out = 0
    for pairs in (task.good, task.removed):
        part = pairs.within(low, low + len(scores_BW))
        column_P = part.row - first
        inside_P = (column_P >= 0) & (column_P < scores_BW.shape[1])
        scores_BW[part.query[inside_P], column_P[inside_P]] = OUT
        left_out += int(inside_P.sum())
    return left_out


def _rows(low: int, scores_BW: Vectors) -> Iterator[slice]:
    """The queries of a tile, a few at a time."""
    size, width = scores_BW.shape
    step = max(1, CHUNK // width)
    for begin in range(0, size, step):
        yield slice(low + begin, low + min(begin + step, size))


def _count_rows(
    task: Task,
    scores_BW: Vectors,
    corner: tuple[int, int],
    rows_WD: Vectors,
    score_P: ExactScores,
    least_Q: Vectors,
    queries: slice,
) -> tuple[TileCounts, slice]:
    (low, first), width = corner, scores_BW.shape[1]
    good = task.good.within(queries.start, queries.stop)
    answers = RightAnswers(
        query=good.query,
        score=score_P[task.good.start[queries.start] : task.good.start[queries.stop]],
        camera=None if task.camera is None else task.camera[good.row],
    )

    def exact(query_N: Rows, column_N: Rows) -> ExactScores:
        ends = (queries.start, queries.stop)
        return exact_near(task.scorer, ends, query_N + queries.start, column_N, first, rows_WD)

    part_BW = scores_BW[queries.start - low : queries.stop - low]
    camera_W = None if task.camera is None else task.camera[first : first + width]
    return count_before(part_BW, least_Q[queries], answers, camera_W, exact), queries


def _add(ranking: Ranking, counts: TileCounts, queries: slice, good: Pairs) -> None:
    pairs = slice(good.start[queries.start], good.start[queries.stop])
    ranking.before[pairs] += counts.before
    if ranking.camera_before is not None and counts.camera_before is not None:
        ranking.camera_before[pairs] += counts.camera_before
    best_B = ranking.best_wrong[queries]
    np.maximum(best_B, counts.best, out=best_B)
    ranking.wrong.count(counts.scores)


def _sample(task: Task, first: int, rows_WD: Vectors) -> Histogram:
    """Scores of a few groups of queries on a few groups of rows, evenly spread."""
    sample = Histogram.empty()
    for low, high in _groups(task.queries, 16, 8):
        for begin, end in _groups(len(rows_WD), 8, 64):
            scores_BW = np.empty((high - low, end - begin), dtype=np.float32)
            task.scorer.tile(low, high, first + begin, rows_WD[begin:end], scores_BW)
            sample.count(scores_BW.reshape(-1))
            sample.total += scores_BW.size
    return sample


def _groups(total: int, groups: int, size: int) -> list[tuple[int, int]]:
    """(low, high) of groups of neighbours, evenly spread over range(total)."""
    return [(low, min(low + size, total)) for low in range(0, total, max(size, total // groups))]


def _tile_shape(task: Task, memory_mb: int) -> tuple[int, int]:
    """B and W."""
    scores = max(SMALLEST, (memory_mb << 20) // 4)
    height = max(1, min(TILE_QUERIES, task.queries, scores // NARROW))
    return height, max(1, min(len(task.gallery), scores // height))
