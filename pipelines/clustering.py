"""NMI: how well a k-means clustering of embeddings agrees with their identities.

As published for Cars196 and CUB-200: as many clusters as identities, 20 iterations, and the mutual
information divided by the mean of the two entropies. The start of k-means is seeded; published
figures name no seed.

Shapes: N rows, D embedding dimension.
"""

import faiss
import numpy as np
import pyarrow as pa
from sklearn.metrics import normalized_mutual_info_score

from pipelines.retrieval.vectors import Vectors

ITERATIONS = 20


def nmi_percent(vectors_ND: Vectors, identities: pa.ChunkedArray, *, seed: int) -> float:
    """NMI in percent of a k-means clustering of unit vectors, of which all with an identity take
    part.

    Memory: a copy of the vectors and N x 8 bytes; another copy where an identity is not known.
    """
    if identities.null_count:
        known_N = np.asarray(identities.is_valid())
        vectors_ND, identities = vectors_ND[known_N], identities.drop_null()
    labels_N = np.asarray(identities.combine_chunks().dictionary_encode().indices)
    count = int(labels_N.max()) + 1
    kmeans = faiss.Kmeans(
        vectors_ND.shape[1],
        count,
        niter=ITERATIONS,
        seed=seed,
        max_points_per_centroid=len(vectors_ND),
        min_points_per_centroid=1,
    )
    kmeans.train(vectors_ND)
    _, nearest_N1 = kmeans.index.search(vectors_ND, 1)
    return 100 * float(normalized_mutual_info_score(labels_N, nearest_N1[:, 0]))
