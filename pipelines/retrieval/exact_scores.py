"""Scores in float64, of the few pairs that float32 cannot tell apart, or of a crowd of them.

Shapes: B queries and W gallery rows of a tile, D embedding dimension, N single pairs.
"""

import numpy as np

from pipelines.retrieval.pairs import Rows
from pipelines.retrieval.rounding import ExactScores
from pipelines.retrieval.scorers import Scorer
from pipelines.retrieval.vectors import Vectors

BYTES_AT_ONCE = 16 << 20
CROWD = 16
"""Where more than one pair in so many is asked for, a whole product costs less than single ones."""


def exact_pairs(
    scorer: Scorer, query_N: Rows, column_N: Rows, first: int, rows_WD: Vectors
) -> ExactScores:
    """[N] scores, one inner product a pair; the last bits depend on the pair alone.

    Args:
        scorer: of the queries.
        query_N: numbers of the queries.
        column_N: rows of the block.
        first: number of the block's first row in the gallery.
        rows_WD: the block.

    Memory: 16 MiB, or one pair of vectors.
    """
    score_N = np.empty(len(query_N), dtype=np.float64)
    step = max(1, BYTES_AT_ONCE // (8 * rows_WD.shape[1]))
    for at in range(0, len(query_N), step):
        part = slice(at, at + step)
        score_N[part] = scorer.pairs(query_N[part], column_N[part] + first, rows_WD[column_N[part]])
    return score_N


def exact_near(
    scorer: Scorer,
    queries: tuple[int, int],
    query_N: Rows,
    column_N: Rows,
    first: int,
    rows_WD: Vectors,
) -> ExactScores:
    """As `exact_pairs`, of pairs between the queries low, ..., high - 1 and a block, however many.

    Memory: 16 MiB, 8 bytes a pair, and a copy of these queries in float64.
    """
    low, high = queries
    if CROWD * len(query_N) <= (high - low) * len(rows_WD):
        return exact_pairs(scorer, query_N, column_N, first, rows_WD)
    score_N = np.empty(len(query_N), dtype=np.float64)
    order_N = np.argsort(column_N, kind="stable")
    step = max(1, BYTES_AT_ONCE // (8 * (rows_WD.shape[1] + high - low)))
    for begin in range(0, len(rows_WD), step):
        block_WD = rows_WD[begin : begin + step]
        cuts = np.searchsorted(column_N, (begin, begin + len(block_WD)), sorter=order_N)
        chosen_n = order_N[cuts[0] : cuts[1]]
        if len(chosen_n):
            scores_BW = scorer.exact_tile(low, high, first + begin, block_WD)
            score_N[chosen_n] = scores_BW[query_N[chosen_n] - low, column_N[chosen_n] - begin]
    return score_N
