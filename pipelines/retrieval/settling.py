"""The k nearest rows in the order of float64, from the few more that float32 proposes.

A float32 product errs by at most e (`rounding_bound`), so neighbours whose scores lie more than 2 e
apart stand in their right order; runs of closer ones are scored again in float64. A row that was
not proposed scores at most the last proposal + e. Where that could reach the k-th best, all base
rows are scored in float64: seldom, unless more near-copies lie there than were proposed. So the
result does not hang on how a processor or a tile's shape rounds a product in float32; nothing of
lower precision may propose.

Shapes: Q queries, N base vectors, D embedding dimension, k neighbours, C proposals, R queries of a
band, W columns of a tile, P single pairs, p those of one tile.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.retrieval.pairs import Rows
from pipelines.retrieval.rounding import (
    SAME,
    ExactScores,
    exact_order,
    exact_products,
    rounding_bound,
)
from pipelines.retrieval.vectors import Vectors

ENTRIES_AT_ONCE = 1 << 18
SIDE = 512  # of a tile in float64
LARGEST_PRODUCT, SMALLEST_PRODUCT = 2.0**126, 2.0**-149  # in float32
Indices: TypeAlias = npt.NDArray[np.int32]


def settle(
    index_QC: Indices, score_QC: Vectors, queries_QD: Vectors, base_ND: Vectors, k: int
) -> tuple[Indices, Vectors]:
    """The base rows [Q, k] with the largest inner product (all, if N < k), equal ones (`SAME`) by
    number, and the products [Q, k]: of float64 where they decide, elsewhere of float32.

    Args:
        index_QC: [Q, C] the C best base rows by float32 products; C is N, or more than k.
        score_QC: [Q, C] these products, descending.
        queries_QD: [Q, D] float32.
        base_ND: [N, D] float32.
        k: at least 1.

    Memory: 8 bytes for each neighbour, query and base row, and about 64 MiB, or 150 bytes for each
    of one query's proposals.

    Raises:
        ValueError: vectors with NaN or infinity, or too long for products in float32.
    """
    proposed = index_QC.shape[1]
    k = min(k, proposed)
    length_Q, length_N = _lengths(queries_QD), _lengths(base_ND)
    if not length_Q.max(initial=0) * length_N.max() < LARGEST_PRODUCT:
        raise ValueError(
            f"vectors of lengths up to {length_Q.max(initial=0)} and {length_N.max()}: with NaN, "
            "infinity or products beyond float32 there are no nearest ones"
        )
    index_Qk = np.empty((len(queries_QD), k), dtype=np.int32)
    score_Qk = np.empty((len(queries_QD), k), dtype=np.float32)
    height = max(1, ENTRIES_AT_ONCE // proposed)
    for start in range(0, len(queries_QD), height):
        band = slice(start, start + height)
        part = _Band(queries_QD[band], base_ND, length_Q[band], length_N)
        index_RC, score_RC = index_QC[band].copy(), score_QC[band].copy()
        part.order_runs(index_RC, score_RC, k)
        if proposed < len(base_ND):
            # a row that was not proposed may reach the k-th best
            reach_R = score_QC[band, -1] + part.error_R
            part.search_again(
                np.flatnonzero(score_RC[:, k - 1] <= reach_R), index_RC[:, :k], score_RC[:, :k]
            )
        index_Qk[band], score_Qk[band] = index_RC[:, :k], score_RC[:, :k]
    return index_Qk, score_Qk


class _Band:
    """Some of the queries, and what their float32 scores may be off."""

    def __init__(
        self, queries_RD: Vectors, base_ND: Vectors, length_R: ExactScores, length_N: ExactScores
    ) -> None:
        self.queries_RD, self.base_ND = queries_RD, base_ND
        self.length_R, self.length_N = length_R, length_N
        dim = base_ND.shape[1]
        self.error_R = rounding_bound(dim) * length_R * length_N.max() + dim * SMALLEST_PRODUCT

    def same(self, row_P: Rows, index_P: Rows) -> ExactScores:
        """[P] what the float64 scores of these pairs may be off."""
        return SAME * self.length_R[row_P] * self.length_N[index_P]

    def order_runs(self, index_RC: Indices, score_RC: Vectors, k: int) -> None:
        """Put every run of close proposals that begins among the first k in its order, in place."""
        close_RG = score_RC[:, :-1] - score_RC[:, 1:] <= 2 * self.error_R[:, None]
        close_RG[:, k - 1 :] = np.logical_and.accumulate(close_RG[:, k - 1 :], axis=1)
        alone_R1 = np.zeros((len(close_RG), 1), dtype=bool)
        follows_RC = np.concatenate([alone_R1, close_RG], axis=1)
        row_P, place_P = np.nonzero(follows_RC | np.concatenate([close_RG, alone_R1], axis=1))
        run_P = np.cumsum(~follows_RC[row_P, place_P])
        index_P = index_RC[row_P, place_P].astype(np.int64)
        exact_P = exact_products(self.queries_RD, row_P, self.base_ND, index_P)
        order_P = exact_order(run_P, exact_P, index_P, self.same(row_P, index_P))
        index_RC[row_P, place_P] = index_P[order_P]
        score_RC[row_P, place_P] = exact_P[order_P]

    def search_again(self, rows: Rows, index_Rk: Indices, score_Rk: Vectors) -> None:
        """Replace the lists of some rows by the k best of the whole base, in place."""
        for start in range(0, len(rows), SIDE):
            chosen = rows[start : start + SIDE]
            bar_r = score_Rk[chosen, -1] - self.error_R[chosen]
            index_Rk[chosen], score_Rk[chosen] = self._best(chosen, bar_r, index_Rk.shape[1])

    def _best(self, rows: Rows, bar_r: ExactScores, k: int) -> tuple[Rows, ExactScores]:
        """[r, k] base rows and their float64 scores; at least k lie above the bar [r]. Where k were
        found, another has to be better than the last: if it is as good, its number is larger."""
        queries_rD = self.queries_RD[rows].astype(np.float64)
        most_same_r = SAME * self.length_R[rows] * self.length_N.max()
        row_P, index_P, score_P = np.empty(0, int), np.empty(0, int), np.empty(0)
        for start in range(0, len(self.base_ND), SIDE):
            scores_rW = queries_rD @ self.base_ND[start : start + SIDE].T.astype(np.float64)
            row_p, column_p = _above(scores_rW, bar_r, most_same_r, k)
            if not len(row_p):
                continue
            row_P = np.concatenate([row_P, row_p])
            index_P = np.concatenate([index_P, column_p + start])
            score_P = np.concatenate([score_P, scores_rW[row_p, column_p]])
            same_P = self.same(rows[row_P], index_P)
            order_P = exact_order(row_P, score_P, index_P, same_P)
            row_P, index_P, score_P = row_P[order_P], index_P[order_P], score_P[order_P]
            place_P = np.arange(len(row_P)) - np.searchsorted(row_P, row_P)
            last_P = place_P == k - 1
            bar_r[row_P[last_P]] = (score_P + same_P[order_P])[last_P]
            kept_P = place_P < k
            row_P, index_P, score_P = row_P[kept_P], index_P[kept_P], score_P[kept_P]
        return index_P.reshape(-1, k), score_P.reshape(-1, k)


def _above(
    scores_rW: ExactScores, bar_r: ExactScores, same_r: ExactScores, k: int
) -> tuple[Rows, Rows]:
    """Rows [p] (ascending) and columns [p] of the scores above the bar, of each row's only the
    k best and what equals the last of them."""
    above_rW = scores_rW > bar_r[:, None]
    crowded = np.flatnonzero(above_rW.sum(axis=1) > k)
    if len(crowded):
        scores_cW = scores_rW[crowded]
        last_c = np.partition(scores_cW, -k, axis=1)[:, -k] - same_r[crowded]
        above_rW[crowded] &= scores_cW >= last_c[:, None]
    row_p, column_p = above_rW.nonzero()
    return row_p, column_p


def _lengths(vectors_ND: Vectors) -> ExactScores:
    return np.sqrt(np.einsum("nd,nd->n", vectors_ND, vectors_ND, dtype=np.float64))
