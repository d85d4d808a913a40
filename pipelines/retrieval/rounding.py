"""How far a float32 inner product can be off, and the order of scores by float64.

Shapes: P single pairs, D embedding dimension, L left and R right vectors.
"""

import numpy as np
import numpy.typing as npt

from pipelines.retrieval.pairs import Rows
from pipelines.retrieval.vectors import Vectors

ExactScores = npt.NDArray[np.float64]

SAME = 2.0**-44
"""Two ways to add up the same products of unit vectors differ by less in float64: twice the largest
difference seen, 2e-14, where all products are alike. Scores this close are taken as equal, so that
copies of a vector have equal scores wherever and however they are computed."""
VALUES_AT_ONCE = 1 << 16  # of either side; larger pieces leave the processor's cache and are slower


def rounding_bound(dim: int) -> float:
    """The largest error of a float32 inner product of two unit vectors, however it is cut, with
    room for a rounding of the result.

    D u / (1 - D u) with u = 2^-24: Higham, "Accuracy and Stability of Numerical Algorithms",
    section 3.1. For other vectors, times both lengths.
    """
    unit = dim * 2.0**-24
    return unit / (1 - unit) + 2.0**-22


def exact_products(left_LD: Vectors, left_P: Rows, right_RD: Vectors, right_P: Rows) -> ExactScores:
    """[P] float64 inner products of pairs of rows; the last bits depend on the pair alone.

    Memory: 8 bytes a pair, and 2 MiB or one pair of vectors.
    """
    score_P = np.empty(len(left_P), dtype=np.float64)
    step = max(1, VALUES_AT_ONCE // max(1, left_LD.shape[1]))
    for start in range(0, len(left_P), step):
        part = slice(start, start + step)
        products_pD = left_LD[left_P[part]].astype(np.float64)
        products_pD *= right_RD[right_P[part]]
        score_P[part] = products_pD.sum(axis=1)
    return score_P


def exact_order(group_P: Rows, score_P: ExactScores, row_P: Rows, same_P: ExactScores) -> Rows:
    """[P] the pairs by (group up, score down, row up). Scores that lie at most the lower one's
    `same` below the next higher of their group are equal to it, and so on down."""
    order_P = np.lexsort((-score_P, group_P))
    score_P, group_P = score_P[order_P], group_P[order_P]
    lower = score_P[:-1] - score_P[1:] > same_P[order_P[1:]]
    level_P = np.concatenate([[0], np.cumsum(lower | (group_P[:-1] != group_P[1:]))])
    return order_P[np.lexsort((row_P[order_P], level_P[: len(order_P)]))]
