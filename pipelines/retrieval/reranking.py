"""k-reciprocal re-ranking of queries against a gallery, without a matrix of queries x gallery.

Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
The final distance of query i and gallery row j is

    (1 - weight) (1 - S / (2 - S)) + weight d[i, j],    S = sum_n min(V_i[n], V_j[n])

with d the squared Euclidean distances among queries and gallery together, each row divided by its
largest, and V the k-reciprocal encoding (`pipelines.retrieval.reciprocal`). S is 0 for nearly all
pairs, so it is kept as a sparse matrix; d comes from the cosines, which a ranking computes anyway.

Shapes: Q queries, G gallery rows, D embedding dimension, B queries and W gallery rows of a tile,
E pairs with S > 0, k results.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from pipelines.retrieval.neighbours import DEFAULT_MEMORY_MB, nearest_among
from pipelines.retrieval.reciprocal import Csr, encode, pair_scores_of
from pipelines.retrieval.vectors import Vectors

K1, K2, WEIGHT = 20, 6, 0.3
BYTES_PER_PRODUCT = 40
MOST_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Reranked:
    """Final distances of all pairs, ready to be computed a tile at a time; 8 bytes a pair with
    S > 0, and the vectors, which are not copied."""

    queries_QD: Vectors
    gallery_GD: Vectors
    starts: npt.NDArray[np.int64]
    """[Q + 1] entries `starts[q]` to `starts[q + 1]` of the two fields below belong to query q."""
    columns: npt.NDArray[np.int32]
    """[E] gallery rows; within a query in no order."""
    jaccard: Vectors
    """[E] S / (2 - S)."""
    largest: Vectors
    """[Q] the largest squared distance from the query to any query or gallery row."""
    weight: float
    """Share of the original distance in the final one."""

    def adjust(self, scores_BW: Vectors, queries: slice, columns: slice) -> None:
        """Turn a tile of cosines into minus the final distances, in place: higher is better.

        Args:
            scores_BW: [B, W] float32 cosines of the queries and the gallery rows of the slices,
                both with their starts and stops given and without steps.
        """
        scale_B = 2 * self.weight / self.largest[queries]
        scores_BW *= scale_B[:, None]
        scores_BW -= (scale_B + (1 - self.weight))[:, None]
        entries = slice(self.starts[queries.start], self.starts[queries.stop])
        column = self.columns[entries]
        inside = np.flatnonzero((column >= columns.start) & (column < columns.stop))
        row = np.searchsorted(
            self.starts[queries.start : queries.stop + 1], entries.start + inside, side="right"
        )
        gain = (1 - self.weight) * self.jaccard[entries][inside]
        scores_BW[row - 1, column[inside] - columns.start] += gain.astype(np.float32)

    def top(
        self, queries: Sequence[int], k: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The k gallery rows [n, k] with the smallest final distance to each of n queries (all, if
        G < k), equal ones by row, and minus that distance [n, k]. Memory: a few vectors of G."""
        size = len(self.gallery_GD)
        index = np.empty((len(queries), min(k, size)), dtype=np.int64)
        scores = np.empty(index.shape, dtype=np.float32)
        for row, query in enumerate(queries):
            scores_1G = self.queries_QD[query : query + 1] @ self.gallery_GD.T
            self.adjust(scores_1G, slice(query, query + 1), slice(0, size))
            index[row] = np.argsort(-scores_1G[0], kind="stable")[: index.shape[1]]
            scores[row] = scores_1G[0, index[row]]
        return index, scores


def rerank(
    queries_QD: Vectors,
    gallery_GD: Vectors,
    *,
    k1: int = K1,
    k2: int = K2,
    weight: float = WEIGHT,
    memory_mb: int = DEFAULT_MEMORY_MB,
    device: str | torch.device = "cpu",
) -> Reranked:
    """Re-rank a gallery for all queries together, which also are each other's neighbours.

    Args:
        queries_QD: [Q, D] float32 unit vectors.
        gallery_GD: [G, D] float32 unit vectors.
        k1: neighbours whose reciprocity is asked for, the row itself not counted.
        k2: rows averaged by the local query expansion, the row itself counted; 1 is none.
        weight: lambda, the share of the original distance in the final one.
        memory_mb: limit of the working memory of each step.
        device: where the neighbours are searched; the rest is done on the CPU.

    Memory: the limit, one copy of the vectors, 24 bytes a row and neighbour, 16 bytes an entry of
    the encodings (see `encode`), and one and a half times the result (see `Reranked`).

    Raises:
        ValueError: k1 or k2 below 1, a weight outside [0, 1], no queries or no gallery rows.
    """
    check_settings(k1, k2, weight)
    if not len(queries_QD) or not len(gallery_GD):
        raise ValueError(f"{len(queries_QD)} queries and {len(gallery_GD)} gallery rows")
    encoded, lowest_N = _encode_all(queries_QD, gallery_GD, k1, k2, memory_mb, device)
    starts, columns, jaccard = similarities(
        encoded[: len(queries_QD)], encoded[len(queries_QD) :], memory_mb=memory_mb
    )
    largest = 2 - 2 * lowest_N[: len(queries_QD)]
    return Reranked(
        queries_QD=queries_QD,
        gallery_GD=gallery_GD,
        starts=starts,
        columns=columns,
        jaccard=jaccard,
        largest=np.where(largest > 0, largest, np.float32(1)),
        weight=weight,
    )


def _encode_all(
    queries_QD: Vectors,
    gallery_GD: Vectors,
    k1: int,
    k2: int,
    memory_mb: int,
    device: str | torch.device,
) -> tuple[Csr, Vectors]:
    vectors_ND = np.concatenate([queries_QD, gallery_GD])
    found = nearest_among(vectors_ND, max(k1 + 1, k2), memory_mb=memory_mb, device=device)
    pair_scores = pair_scores_of(vectors_ND)
    return encode(found, pair_scores, k1=k1, k2=k2, memory_mb=memory_mb), found.lowest


def check_settings(k1: int, k2: int, weight: float) -> None:
    """Raises ValueError for settings that mean nothing."""
    if k1 < 1 or k2 < 1:
        raise ValueError(f"k1={k1}, k2={k2}: both are at least 1")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight={weight}: a share from 0 to 1")


def similarities(
    queries: Csr, gallery: Csr, *, memory_mb: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], Vectors]:
    """Jaccard similarities of the encodings of queries [Q, N] and gallery [G, N].

    Follows each entry of a query down the gallery's column of it, on as many threads as torch has.
    Returns the starts [Q + 1], the gallery rows [E] and S / (2 - S) [E].

    Memory: the limit (at least what one query a thread needs), the gallery's encodings once more,
    and 12 bytes a pair of the result.
    """
    by_column = gallery.tocsc()
    lengths = np.diff(by_column.indptr)
    products = np.concatenate([[0], np.cumsum(lengths[queries.indices], dtype=np.int64)])
    identity = sparse.identity(gallery.shape[0], dtype=np.float32, format="csr")

    def overlaps(band: slice) -> Csr:
        ends = queries.indptr[band.start : band.stop + 1]
        part = slice(ends[0], ends[-1])
        column, length = queries.indices[part], lengths[queries.indices[part]]
        before = products[part] - products[part.start]
        entry = np.arange(length.sum()) + np.repeat(by_column.indptr[column] - before, length)
        smaller = np.minimum(np.repeat(queries.data[part], length), by_column.data[entry])
        terms = sparse.csr_matrix(
            (smaller, by_column.indices[entry], products[ends] - products[part.start]),
            shape=(len(ends) - 1, gallery.shape[0]),
        )
        return terms @ identity  # adds up the terms of a pair

    counts, columns, jaccard = [np.zeros(1, np.int64)], [], []
    threads = min(torch.get_num_threads(), MOST_THREADS)
    limit = (memory_mb << 20) // (BYTES_PER_PRODUCT * threads)
    with ThreadPoolExecutor(threads) as pool:
        for overlap in pool.map(overlaps, _bands(products[queries.indptr], limit)):
            counts.append(np.diff(overlap.indptr))
            columns.append(overlap.indices.astype(np.int32, copy=False))
            jaccard.append(overlap.data / (2 - overlap.data))
    all_columns = np.concatenate(columns)
    del columns
    return np.cumsum(np.concatenate(counts)), all_columns, np.concatenate(jaccard)


def _bands(ends: npt.NDArray[np.int64], limit: int) -> Iterator[slice]:
    """Successive queries with at most `limit` products, or one query with more."""
    start = 0
    while start < len(ends) - 1:
        stop = int(np.searchsorted(ends, ends[start] + limit, side="right")) - 1
        stop = max(stop, start + 1)
        yield slice(start, stop)
        start = stop
