"""How many wrong rows of a tile come before each right answer.

Only wrong rows at or above the query's lowest right answer matter. Each finds its place among the
query's right answers, of which there are few: nothing is sorted. A product's last bits depend on
the shape of its tile, so rows near a right answer (`nearness`) are compared by exact scores.

Shapes: B queries, W gallery rows, K kept wrong rows, N of them that are near a right answer, P
right answers of these queries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipelines.retrieval.pairs import Rows
from pipelines.retrieval.rounding import SAME, ExactScores

Scores = npt.NDArray[np.float32]
Exact = Callable[[Rows, Rows], ExactScores]

APART = 4.0
"""Scores lie between -1 and 1: group x APART + score keeps the scores of groups apart."""
NEAR = 2.0**-14 + 2.0**-18


def nearness(score: Scores) -> Scores:
    """How close to another a float32 score must be to doubt it: NEAR at 1 and -1, less for lower
    ones. More than twice the largest rounding error that was seen in products of unit vectors of 64
    to 10,752 dimensions: 2.6e-5, where all products are alike, as in embeddings that have collapsed
    to a point or two; 2e-6 elsewhere."""
    return np.float32(2.0**-14) * np.abs(score) + np.float32(2.0**-18)


@dataclass(frozen=True, kw_only=True)
class RightAnswers:
    """The right answers of the queries of a tile."""

    query: Rows
    """[P] 0 to B - 1, ascending."""
    score: ExactScores
    """[P]"""
    camera: Rows | None
    """[P] camera codes, -1 and up."""


@dataclass(frozen=True, kw_only=True)
class TileCounts:
    """What a tile adds to a ranking."""

    before: Rows
    """[P] wrong rows before the right answer."""
    camera_before: Rows | None
    """[P] those under its camera."""
    best: Scores
    """[B] highest wrong score that was kept, -inf where none was."""
    scores: Scores
    """[K] the wrong scores that were kept."""


@dataclass(frozen=True)
class _Kept:
    """Wrong rows at or above their query's least score, by query."""

    start: Rows
    """[B + 1] where each query's begin."""
    query: Rows
    column: Rows
    score: Scores

    @classmethod
    def of(cls, wrong_BW: Scores, least_B: Scores) -> "_Kept":
        size, width = wrong_BW.shape
        place_K = np.flatnonzero(wrong_BW >= np.maximum(least_B, np.float32(-2))[:, None])
        start = np.searchsorted(place_K, np.arange(size + 1) * width)
        query_K = np.repeat(np.arange(size), np.diff(start))
        return cls(start, query_K, place_K - query_K * width, wrong_BW.reshape(-1)[place_K])


def count_before(
    wrong_BW: Scores, least_B: Scores, good: RightAnswers, camera_W: Rows | None, exact: Exact
) -> TileCounts:
    """Count the wrong rows of a tile that come before each right answer; those of the very same
    score do.

    Args:
        wrong_BW: scores; -inf where a row is right or removed.
        least_B: wrong rows below it are not kept; at most NEAR below the query's lowest right
            answer.
        good: the right answers.
        camera_W: camera codes of the rows; with them rows are counted by camera too.
        exact: exact scores of (query, column) pairs: two [N] in, [N] out; no pair comes twice.

    Memory: 80 bytes a kept row, of which there are at most B x W.
    """
    kept = _Kept.of(wrong_BW, least_B)
    places = _Places.of(kept, good, np.zeros_like(kept.query), np.zeros_like(good.query))
    near_K = places.near(kept.score)
    query_N, column_N = kept.query[near_K], kept.column[near_K]
    near = _NearRows.of(exact(query_N, column_N), good.score)
    before_P = places.count(~near_K) + near.count(query_N, good.query)
    camera_before_P = None
    if camera_W is not None and good.camera is not None:
        camera_K = camera_W[kept.column]
        by_camera = _Places.of(kept, good, camera_K, good.camera)
        cameras = int(max(camera_W.max(), good.camera.max(initial=-1))) + 2
        camera_before_P = by_camera.count(~near_K) + near.count(
            query_N * cameras + camera_K[near_K] + 1, good.query * cameras + good.camera + 1
        )
    return TileCounts(
        before=before_P, camera_before=camera_before_P, best=_best(kept), scores=kept.score
    )


@dataclass(frozen=True)
class _Places:
    """Where kept rows stand among the right answers of their query and group, by float32 scores.

    All marks stand in one array: the right answers by query, group and score, and behind those of a
    group a bar above every score.
    """

    mark_M: ExactScores
    """[M] group x APART + score; of a bar the score is 2."""
    answer_P: Rows
    """[P] the right answer's mark."""
    bar_P: Rows
    """[P] the bar of its group."""
    place_K: Rows
    """[K] the first mark above the kept row."""

    @classmethod
    def of(cls, kept: _Kept, good: RightAnswers, group_K: Rows, group_P: Rows) -> "_Places":
        order_P = np.lexsort((good.score, group_P, good.query))
        query_P, sorted_P = good.query[order_P], group_P[order_P]
        last_P = (np.diff(query_P) != 0) | (np.diff(sorted_P) != 0)
        ends = np.flatnonzero(np.r_[last_P, True])
        number_P = np.searchsorted(ends, np.arange(len(order_P)))  # of the right answer's group
        answer_P, bar_G = np.arange(len(order_P)) + number_P, ends + 1 + np.arange(len(ends))
        mark_M = np.empty(len(order_P) + len(ends))
        mark_M[answer_P] = sorted_P * APART + good.score[order_P]
        mark_M[bar_G] = sorted_P[ends] * APART + APART / 2
        first_P = np.searchsorted(query_P, np.arange(len(kept.start)))
        begin_B = first_P + np.searchsorted(query_P[ends], np.arange(len(kept.start)))
        key_K = group_K * APART + kept.score
        place_K = np.empty(len(key_K), dtype=np.int64)
        for b, (low, high) in enumerate(pairwise(kept.start.tolist())):
            marks = mark_M[begin_B[b] : begin_B[b + 1]]
            np.add(np.searchsorted(marks, key_K[low:high]), begin_B[b], out=place_K[low:high])
        of_answer_P = np.argsort(order_P)
        return cls(mark_M, answer_P[of_answer_P], bar_G[number_P[of_answer_P]], place_K)

    def near(self, score_K: Scores) -> npt.NDArray[np.bool_]:
        """[K] whether the row is near a right answer, where there is one group a query; before the
        first of a query stands a bar, the last one of all before the first of all."""
        above_K = self.mark_M[self.place_K] - score_K
        below_K = np.abs(score_K - self.mark_M[self.place_K - 1])
        return np.minimum(above_K, below_K) <= nearness(score_K)

    def count(self, chosen_K: npt.NDArray[np.bool_]) -> Rows:
        """[P] chosen rows of the answer's group that are above it; none of them is near."""
        places = self.place_K[chosen_K]
        up_to_M = np.cumsum(np.bincount(places, minlength=len(self.mark_M)))
        return up_to_M[self.bar_P] - up_to_M[self.answer_P]


@dataclass(frozen=True)
class _NearRows:
    """Rows that are near right answers, compared with them by their places among the exact scores:
    whole numbers, that stay exact when they are joined with the number of a group."""

    place_N: Rows
    """[N] 0 to N - 1, by exact score."""
    least_P: Rows
    """[P] the lowest place that comes before the right answer."""

    @classmethod
    def of(cls, exact_N: ExactScores, score_P: ExactScores) -> "_NearRows":
        order_N = np.argsort(exact_N)
        place_N = np.empty(len(exact_N), dtype=np.int64)
        place_N[order_N] = np.arange(len(exact_N))
        return cls(place_N, np.searchsorted(exact_N[order_N], score_P - SAME))

    def count(self, group_N: Rows, group_P: Rows) -> Rows:
        """[P] rows of the answer's group that come before it."""
        step = len(self.place_N) + 1
        sorted_N = np.sort(group_N * step + self.place_N)
        end_P = np.searchsorted(sorted_N, (group_P + 1) * step)
        return end_P - np.searchsorted(sorted_N, group_P * step + self.least_P)


def _best(kept: _Kept) -> Scores:
    best_B = np.full(len(kept.start) - 1, -np.inf, dtype=np.float32)
    some = np.flatnonzero(np.diff(kept.start))
    if len(some):
        best_B[some] = np.maximum.reduceat(kept.score, kept.start[some])
    return best_B
