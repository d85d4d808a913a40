"""k-reciprocal re-ranking as it is usually written: whole N x N matrices in numpy float32.

The yardstick of speed and memory that `benchmarks.evaluation` compares with. Zhong, Zheng, Cao, Li,
CVPR 2017.
"""

import numpy as np


def dense_rerank(
    queries_QD: np.ndarray, gallery_GD: np.ndarray, *, k1: int, k2: int, weight: float
) -> np.ndarray:
    """[Q, G] final distances of unit vectors; N = Q + G. Memory: three matrices of N x N."""
    everything_ND = np.concatenate([queries_QD, gallery_GD])
    count, total = len(queries_QD), len(everything_ND)
    distance_NN = 2 - 2 * (everything_ND @ everything_ND.T)
    distance_NN /= distance_NN.max(axis=1, keepdims=True)
    order_NN = np.argsort(distance_NN, axis=1).astype(np.int32)
    encoded_NN = np.zeros((total, total), dtype=np.float32)
    for i in range(total):
        chosen = _reciprocal(order_NN, i, k1)
        expanded = [chosen]
        for candidate in chosen:
            others = _reciprocal(order_NN, candidate, round(k1 / 2))
            if len(np.intersect1d(others, chosen)) > 2 / 3 * len(others):
                expanded.append(others)
        kept = np.unique(np.concatenate(expanded))
        weights = np.exp(-distance_NN[i, kept])
        encoded_NN[i, kept] = weights / weights.sum()
    original_QN = distance_NN[:count].copy()
    del distance_NN
    if k2 > 1:
        averaged_NN = np.empty_like(encoded_NN)
        for i in range(total):
            averaged_NN[i] = encoded_NN[order_NN[i, :k2]].mean(axis=0)
        encoded_NN = averaged_NN
    del order_NN
    holders = [np.flatnonzero(encoded_NN[:, column]) for column in range(total)]
    jaccard_QN = np.empty_like(original_QN)
    for i in range(count):
        shared = np.zeros(total, dtype=np.float32)
        for column in np.flatnonzero(encoded_NN[i]):
            rows = holders[column]
            shared[rows] += np.minimum(encoded_NN[i, column], encoded_NN[rows, column])
        jaccard_QN[i] = 1 - shared / (2 - shared)
    return ((1 - weight) * jaccard_QN + weight * original_QN)[:, count:]


def _reciprocal(order_NN: np.ndarray, i: int, k: int) -> np.ndarray:
    forward = order_NN[i, : k + 1]
    return forward[(order_NN[forward, : k + 1] == i).any(axis=1)]
