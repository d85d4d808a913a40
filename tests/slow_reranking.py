"""k-reciprocal re-ranking from the published algorithm: whole matrices, one row at a time.

Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
"""

import numpy as np


def dense_rerank(queries, gallery, k1, k2, weight, dtype=np.float64):
    """[Q, G] final distances; queries [Q, D] and gallery [G, D] are unit vectors."""
    everything = np.concatenate([queries, gallery]).astype(dtype)
    count, rows = len(queries), len(everything)
    squared = np.stack([2 - 2 * (everything * row).sum(axis=1) for row in everything])
    distance = squared / squared.max(axis=1, keepdims=True)
    order = np.argsort(squared, axis=1, kind="stable")

    encoded = np.zeros((rows, rows), dtype=dtype)
    halves = [reciprocal(order, i, int(np.around(k1 / 2))) for i in range(rows)]
    for i in range(rows):
        chosen = reciprocal(order, i, k1)
        expanded = chosen
        for others in (halves[candidate] for candidate in chosen):
            if len(np.intersect1d(chosen, others)) > 2 / 3 * len(others):
                expanded = np.append(expanded, others)
        expanded = np.unique(expanded)
        weights = np.exp(-distance[i, expanded])
        encoded[i, expanded] = weights / weights.sum()
    if k2 > 1:
        encoded = np.stack([encoded[order[i, :k2]].mean(axis=0) for i in range(rows)])

    jaccard = np.zeros((count, rows - count), dtype=dtype)
    for i in range(count):
        shared = np.minimum(encoded[i], encoded[count:]).sum(axis=1)
        jaccard[i] = 1 - shared / (2 - shared)
    return (1 - weight) * jaccard + weight * distance[:count, count:]


def reciprocal(order, i, k):
    """Those of the first k + 1 of row i that have i among their own first k + 1."""
    forward = order[i, : k + 1]
    return np.array([j for j in forward if i in order[j, : k + 1]], dtype=np.int64)
