"""The K best vectors over all shards, the same for every number of shards, threads and queries.

Float32 sums depend on how a matrix product is cut, so a score from the index differs in its last
bits between one shard and four, and between one query and many. Therefore the index only proposes:
its K + 16 best are scored again in float64 and ordered by (score down, id up). A vector that was
not proposed scores at most the last proposal plus the rounding bound of a float32 inner product;
where that could still reach the K best, everything above the bound is fetched and scored.

Shapes: Q queries, K hits, C candidates of a query, S shards, D embedding dimension.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.gallery.shard import Positions, Shard, Vectors
from pipelines.retrieval.rounding import rounding_bound

SPARE = 16
WORK_BYTES = 64 << 20


class Found(NamedTuple):
    """The hits of one query, best first."""

    shard: Positions
    """[K] shard numbers."""
    position: Positions
    """[K] positions in the shard."""
    score: Vectors
    """[K] cosine, rounded to float32 from float64."""


def search_exact(shards: Sequence[Shard], queries_QD: Vectors, top_k: int) -> list[Found]:
    """The `top_k` best of all shards for each query (all vectors, if there are fewer).

    Args:
        shards: at least one.
        queries_QD: [Q, D] float32 unit vectors.

    Memory: about 64 MiB beside the shards (one query's 12 x K x D bytes at least), and the hits.
    """
    dim = queries_QD.shape[1]
    block = max(1, WORK_BYTES // (12 * dim * (top_k + SPARE)))
    found = []
    for start in range(0, len(queries_QD), block):
        found += _search_block(shards, queries_QD[start : start + block], top_k)
    return found


def _search_block(shards: Sequence[Shard], queries_QD: Vectors, top_k: int) -> list[Found]:
    total = sum(len(shard) for shard in shards)
    shard_QC, position_QC, last_Q = _propose(shards, queries_QD, top_k + SPARE)
    complete = shard_QC.shape[1] == total
    bound = rounding_bound(queries_QD.shape[1])
    results = []
    for query_D, shard_C, position_C, last in zip(
        queries_QD, shard_QC, position_QC, last_Q, strict=True
    ):
        found = _order(shards, query_D, shard_C, position_C, top_k)
        if not complete and found.score[-1] <= last + bound:
            # equal or nearly equal vectors at the border: look at every one of them
            lowest = float(found.score[-1]) - 2 * bound
            above = [shard.above(query_D, lowest) for shard in shards]
            shard_C = np.repeat(np.arange(len(shards)), [len(positions) for positions in above])
            found = _order(shards, query_D, shard_C, np.concatenate(above), top_k)
        results.append(found)
    return results


def _propose(
    shards: Sequence[Shard], queries_QD: Vectors, count: int
) -> tuple[Positions, Positions, npt.NDArray[np.float32]]:
    """Shard numbers and positions [Q, C] of the best by the index's own score, and the last [Q]."""
    answers = [shard.nearest(queries_QD, count) for shard in shards]
    score_QC = np.concatenate([score for score, _ in answers], axis=1)
    position_QC = np.concatenate([position for _, position in answers], axis=1)
    widths = [score.shape[1] for score, _ in answers]
    shard_QC = np.broadcast_to(np.repeat(np.arange(len(shards)), widths), position_QC.shape)
    best_QC = np.argsort(-score_QC, axis=1, kind="stable")[:, :count]
    take = np.take_along_axis
    last_Q = take(score_QC, best_QC[:, -1:], axis=1)[:, 0]
    return take(shard_QC, best_QC, axis=1), take(position_QC, best_QC, axis=1), last_Q


def _order(
    shards: Sequence[Shard],
    query_D: Vectors,
    shard_C: Positions,
    position_C: Positions,
    top_k: int,
) -> Found:
    score_C = np.empty(len(shard_C), dtype=np.float32)
    id_C = np.empty(len(shard_C), dtype=np.int64)
    step = max(1, WORK_BYTES // (12 * len(query_D)))
    for number, shard in enumerate(shards):
        for start in range(0, len(shard_C), step):
            chosen = start + np.flatnonzero(shard_C[start : start + step] == number)
            positions = position_C[chosen]
            products = shard.vectors[positions].astype(np.float64) * query_D
            score_C[chosen] = products.sum(axis=1)
            id_C[chosen] = shard.ids[positions]
    best = np.lexsort((id_C, -score_C))[:top_k]
    return Found(shard=shard_C[best], position=position_C[best], score=score_C[best])
