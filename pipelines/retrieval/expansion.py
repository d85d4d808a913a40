"""Alpha query expansion (Radenovic, Tolias, Chum, "Fine-tuning CNN Image Retrieval with No Human
Annotation", TPAMI 2019): a query becomes the mean of itself and its first gallery rows.

    q' = unit(q + sum_i s_i^alpha g_i),    i over the k rows of the highest cosine s_i

A row of a negative cosine has no weight. The first rows are taken whoever and wherever they are:
what the protocol takes out of the ranking, it does not take out here, for a service would not know.

Shapes: Q queries, G gallery rows, W rows of a block, D embedding dimension.
"""

import numpy as np

from pipelines.retrieval.neighbours import nearest
from pipelines.retrieval.vectors import Vectors, VectorSource

BLOCK_ROWS = 32_768


def expand_queries(queries_QD: Vectors, gallery: VectorSource, *, k: int, alpha: float) -> Vectors:
    """[Q, D] unit vectors. Memory: two copies of the queries, 28 bytes a query and neighbour, and
    a block of the gallery."""
    score_QK = np.empty((len(queries_QD), 0), dtype=np.float32)
    row_QK = np.empty((len(queries_QD), 0), dtype=np.int64)
    for first, rows_WD in gallery.blocks(BLOCK_ROWS):
        found = nearest(queries_QD, rows_WD, k)
        score_QK = np.concatenate([score_QK, found.score], axis=1)
        row_QK = np.concatenate([row_QK, found.index.astype(np.int64) + first], axis=1)
        best_QK = np.argsort(-score_QK, axis=1, kind="stable")[:, :k]
        score_QK = np.take_along_axis(score_QK, best_QK, axis=1)
        row_QK = np.take_along_axis(row_QK, best_QK, axis=1)
    weight_QK = np.where(score_QK < 0, 0.0, np.maximum(score_QK, 0.0) ** alpha)
    sum_QD = queries_QD.astype(np.float64)
    for first, rows_WD in gallery.blocks(BLOCK_ROWS):
        query, place = np.nonzero((row_QK >= first) & (row_QK < first + len(rows_WD)))
        for q, p in zip(query.tolist(), place.tolist(), strict=True):
            sum_QD[q] += weight_QK[q, p] * rows_WD[row_QK[q, p] - first]
    lengths = np.linalg.norm(sum_QD, axis=1, keepdims=True)
    return np.asarray(sum_QD / np.where(lengths > 0, lengths, 1), dtype=np.float32)
