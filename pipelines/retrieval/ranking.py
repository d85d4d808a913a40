"""Exact ranks of the right answers, in bands of queries.

Cosine on unit vectors, highest first; equal float32 scores keep the gallery's order. The rank of a
right answer is counted (how many rows lie before it), so that no ordering of the whole gallery is
ever kept.

Shapes: Q queries, G gallery rows, B queries of a band, D embedding dimension, K rows asked for.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from pipelines.retrieval.protocol import Judgement, Rows

Vectors = npt.NDArray[np.float32]
Judge = Callable[[int], Judgement]

DEFAULT_MEMORY_MB = 128


def rank_matches(
    queries_QD: Vectors,
    gallery_GD: Vectors,
    judge: Judge,
    *,
    memory_mb: int = DEFAULT_MEMORY_MB,
) -> list[Rows]:
    """For each query the ascending 0-based ranks of its good rows, its removed rows left out.

    Args:
        queries_QD: [Q, D] float32 unit vectors.
        gallery_GD: [G, D] float32 unit vectors.
        judge: query number -> its good and its removed gallery rows.
        memory_mb: limit of the working memory. A band holds B = memory / (8 G) queries: the scores
            and a sorted copy, 4 bytes each a pair. One query (8 G bytes) is the least.

    Memory: the limit above, plus 8 bytes a (query, good row) pair for the result.
    """
    gallery_size = len(gallery_GD)
    band = max(1, min(len(queries_QD), (memory_mb << 20) // (8 * max(1, gallery_size))))
    scores_BG = np.empty((band, gallery_size), dtype=np.float32)
    ascending_BG = np.empty_like(scores_BG)
    ranks: list[Rows] = []
    for start in range(0, len(queries_QD), band):
        block_BD = queries_QD[start : start + band]
        size = len(block_BD)
        np.matmul(block_BD, gallery_GD.T, out=scores_BG[:size])
        ascending_BG[:size] = scores_BG[:size]
        ascending_BG[:size].sort(axis=1)
        ranks += [
            _ranks_of(scores_BG[row], ascending_BG[row], judge(start + row)) for row in range(size)
        ]
    return ranks


def top_matches(
    queries_QD: Vectors,
    gallery_GD: Vectors,
    judge: Judge,
    chosen: Iterable[int],
    *,
    top_k: int,
) -> list[tuple[Rows, Vectors]]:
    """For each chosen query its first K gallery rows [K] and their scores [K], removed ones left
    out; the same order as the ranks of `rank_matches`. Memory: a few vectors of G numbers.
    """
    results = []
    for query in chosen:
        scores_G = gallery_GD @ queries_QD[query]
        order_G = np.argsort(-scores_G, kind="stable")
        kept = order_G[~np.isin(order_G, judge(query).removed)][:top_k]
        results.append((kept, scores_G[kept]))
    return results


def _ranks_of(scores_G: Vectors, ascending_G: Vectors, judgement: Judgement) -> Rows:
    good, removed = judgement
    scores = scores_G[good]
    up_to = np.searchsorted(ascending_G, scores, side="right")
    ranks = len(ascending_G) - up_to
    tied = np.flatnonzero(up_to - np.searchsorted(ascending_G, scores, side="left") > 1)
    for i in tied:
        ranks[i] += np.count_nonzero(scores_G[: good[i]] == scores[i])
    if len(removed):
        lead = scores_G[removed][None, :] - scores[:, None]
        before = (lead > 0) | ((lead == 0) & (removed[None, :] < good[:, None]))
        ranks -= before.sum(axis=1)
    return np.sort(ranks)
