"""k-reciprocal encoding: each image as a sparse vector over the images that it and its like choose.

Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
With d the squared Euclidean distances, each row divided by its largest:

- R(i, k): those of the first k + 1 of row i (itself included) that have i in their own first k + 1;
- R*(i): R(i, k1) with every R(c, round(k1 / 2)), c in R(i, k1), of which more than two thirds lie
  in R(i, k1);
- V_i: exp(-d[i, j]) for j in R*(i), elsewhere 0, brought to sum 1;
- local query expansion: V_i becomes the mean of V over the first k2 of row i.

Both relations are symmetric, so that they are products of sparse matrices. Of a row's R* only the
added ones may lie outside of its list of neighbours: their distances are computed here.

Shapes: N rows, B rows of a band, D embedding dimension, K length of the lists, P pairs.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from pipelines.retrieval.neighbours import Neighbours
from pipelines.retrieval.rounding import VALUES_AT_ONCE
from pipelines.retrieval.vectors import Vectors

Rows = npt.NDArray[np.int64]
Csr = Any
PairScores = Callable[[Rows, Rows], Vectors]

BYTES_PER_PATH = 40  # a path i -> c -> j of the products: an entry of each, and copies of it


def encode(lists: Neighbours, pair_scores: PairScores, *, k1: int, k2: int, memory_mb: int) -> Csr:
    """[N, N] CSR float32: V of every row, after the query expansion.

    Args:
        lists: min(max(k1 + 1, k2), N) neighbours of each of the N rows among them, the row itself
            included; index -1 is a neighbour that is not one of the rows.
        pair_scores: cosines of pairs of rows [P], [P] -> [P].
        k1: neighbours of a row, without itself.
        k2: rows that the query expansion averages; 1 is none.
        memory_mb: limit of the working memory.

    Memory: the limit, and 8 bytes an entry of V before and after the expansion. A row has at most
    (k1 + 1)(1 + (round(k1 / 2) + 1) / 3) entries before, k2 times as many after; some tens in
    practice.
    """
    rows = len(lists.index)
    half_k1 = round(k1 / 2)  # half to even, as numpy rounds
    band = max(1, (memory_mb << 20) // (BYTES_PER_PATH * (k1 + 1) * (half_k1 + 1)))
    near = _membership(lists, k1 + 1)
    reciprocal = near.multiply(near.T.tocsr()).tocsr()
    half = _membership(lists, half_k1 + 1)
    half = half.multiply(half.T.tocsr()).tocsr()
    half_size = np.diff(half.indptr)
    weights = _membership(lists, k1 + 1, _weights(lists.score, lists.lowest[:, None]))
    parts = []
    for start in range(0, rows, band):
        part = slice(start, start + band)
        sure = reciprocal[part]
        added = _added(sure, half, half_size)
        added_weights = _pair_weights(added, start, lists.lowest, pair_scores)
        parts.append(_unit_sum(weights[part].multiply(sure).tocsr() + added_weights))
    encoded = sparse.vstack(parts, format="csr")
    return encoded if k2 == 1 else _expand(lists, encoded, k2, band)


def distance(scores: Vectors, lowest: Vectors) -> Vectors:
    """Squared Euclidean distances of unit vectors, divided by the row's largest."""
    largest = 2 - 2 * lowest
    shares = (2 - 2 * scores) / np.where(largest > 0, largest, np.float32(1))
    return np.asarray(shares, dtype=np.float32)


def _weights(scores: Vectors, lowest: Vectors) -> Vectors:
    return np.exp(-distance(scores, lowest))


def _membership(lists: Neighbours, size: int, values: Vectors | None = None) -> Csr:
    """[N, N] CSR with 1 (or the values [N, K]) at the first `size` neighbours of each row."""
    index = lists.index[:, :size]
    known = index >= 0
    starts = np.concatenate([[0], np.cumsum(known.sum(axis=1))])
    data = np.ones(starts[-1], np.float32) if values is None else values[:, :size][known]
    rows = len(index)
    return sparse.csr_matrix((data, index[known], starts), shape=(rows, rows))


def _added(sure: Csr, half: Csr, half_size: npt.NDArray[np.int32]) -> Csr:
    """[B, N] CSR with 1 at the members of R* that R does not hold."""
    shared = (sure @ half).multiply(sure).tocsr()  # |R(i, k1) & R(c, half)| at (i, c)
    shared.data = (3 * shared.data > 2 * half_size[shared.indices]).astype(np.float32)
    shared.eliminate_zeros()
    members = shared @ half
    members.data[:] = 1
    added = (members - members.multiply(sure)).tocsr()
    added.eliminate_zeros()
    return added


def _pair_weights(added: Csr, start: int, lowest: Vectors, pair_scores: PairScores) -> Csr:
    row_P = start + np.repeat(np.arange(added.shape[0]), np.diff(added.indptr))
    scores_P = pair_scores(row_P, added.indices)
    weights_P = _weights(scores_P, lowest[row_P])
    return sparse.csr_matrix((weights_P, added.indices, added.indptr), shape=added.shape)


def _unit_sum(weights: Csr) -> Csr:
    sums = np.asarray(weights.sum(axis=1)).ravel()
    weights.data /= np.repeat(sums, np.diff(weights.indptr))
    return weights


def _expand(lists: Neighbours, encoded: Csr, k2: int, band: int) -> Csr:
    width = min(k2, lists.index.shape[1])
    means = _membership(lists, k2)
    means.data /= width
    parts = [means[start : start + band] @ encoded for start in range(0, len(lists.index), band)]
    return sparse.vstack(parts, format="csr")


def pair_scores_of(vectors_ND: Vectors) -> PairScores:
    """Cosines of pairs of rows, a few pairs at once."""
    band = max(1, VALUES_AT_ONCE // vectors_ND.shape[1])

    def score(left_P: Rows, right_P: Rows) -> Vectors:
        scores_P = np.empty(len(left_P), dtype=np.float32)
        for part in _parts(len(left_P), band):
            np.einsum(
                "pd,pd->p", vectors_ND[left_P[part]], vectors_ND[right_P[part]], out=scores_P[part]
            )
        return scores_P

    return score


def _parts(length: int, band: int) -> Iterator[slice]:
    for start in range(0, length, band):
        yield slice(start, start + band)
