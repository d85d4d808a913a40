"""From vectors to the scores by which a gallery is ranked, highest first.

Shapes: Q queries, G gallery rows, B queries and W gallery rows of a tile, D embedding dimension,
P single (query, gallery row) pairs.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from scipy import sparse

from pipelines.retrieval.pairs import Rows
from pipelines.retrieval.reranking import Reranked
from pipelines.retrieval.rounding import ExactScores
from pipelines.retrieval.vectors import Vectors

CPU = "cpu"


class Scorer(Protocol):
    """Scores between -1 and 1."""

    def tile(self, low: int, high: int, first: int, rows_WD: Vectors, out_BW: Vectors) -> None:
        """Fill [B, W]: the queries low, ..., high - 1 on the gallery rows that begin at `first`."""
        ...

    def pairs(self, query_P: Rows, row_P: Rows, rows_PD: Vectors) -> ExactScores:
        """[P] float64 scores of single pairs; `rows_PD` are the vectors of the gallery rows."""
        ...

    def exact_tile(self, low: int, high: int, first: int, rows_WD: Vectors) -> ExactScores:
        """[B, W] float64 scores; as `pairs` but for the last bits."""
        ...


@dataclass(frozen=True)
class Cosine:
    """Inner products of unit vectors."""

    queries: Vectors
    """[Q, D] float32."""
    device: str = CPU
    """Where products are computed; elsewhere than on the CPU it holds the queries, a block of the
    gallery and a tile."""

    def tile(self, low: int, high: int, first: int, rows_WD: Vectors, out_BW: Vectors) -> None:
        """One matrix product."""
        if self.device == CPU:
            np.matmul(self.queries[low:high], rows_WD.T, out=out_BW)
            return
        import torch

        rows = torch.from_numpy(rows_WD).to(self.device)
        out_BW[:] = (self._queries_there[low:high] @ rows.T).cpu().numpy()

    def pairs(self, query_P: Rows, row_P: Rows, rows_PD: Vectors) -> ExactScores:
        """One inner product a pair."""
        return np.einsum("pd,pd->p", self.queries[query_P], rows_PD, dtype=np.float64)

    def exact_tile(self, low: int, high: int, first: int, rows_WD: Vectors) -> ExactScores:
        """One matrix product, on the CPU."""
        return self.queries[low:high].astype(np.float64) @ rows_WD.T.astype(np.float64)

    @cached_property
    def _queries_there(self) -> Any:
        import torch

        return torch.from_numpy(self.queries).to(self.device)


@dataclass(frozen=True)
class KReciprocal:
    """Minus the final distances of k-reciprocal re-ranking."""

    cosine: Cosine
    reranked: Reranked

    def tile(self, low: int, high: int, first: int, rows_WD: Vectors, out_BW: Vectors) -> None:
        """The cosines, adjusted in place."""
        self.cosine.tile(low, high, first, rows_WD, out_BW)
        self.reranked.adjust(out_BW, slice(low, high), slice(first, first + len(rows_WD)))

    def pairs(self, query_P: Rows, row_P: Rows, rows_PD: Vectors) -> ExactScores:
        """As `tile`, of single pairs."""
        jaccard_P = np.asarray(self._jaccard[query_P, row_P], dtype=np.float64).reshape(-1)
        cosine_P = self.cosine.pairs(query_P, row_P, rows_PD)
        return self._adjusted(cosine_P, self.reranked.largest[query_P], jaccard_P)

    def exact_tile(self, low: int, high: int, first: int, rows_WD: Vectors) -> ExactScores:
        """As `tile`, in float64."""
        cosine_BW = self.cosine.exact_tile(low, high, first, rows_WD)
        jaccard_BW = self._jaccard[low:high, first : first + len(rows_WD)].toarray()
        return self._adjusted(cosine_BW, self.reranked.largest[low:high, None], jaccard_BW)

    def _adjusted(self, cosine: ExactScores, largest: Vectors, jaccard: Any) -> ExactScores:
        weight = self.reranked.weight
        distance = 2 * weight / largest.astype(np.float64) * (1 - cosine) + (1 - weight)
        return np.asarray((1 - weight) * jaccard.astype(np.float64) - distance)

    @cached_property
    def _jaccard(self) -> Any:
        found = self.reranked
        shape = (len(found.queries_QD), len(found.gallery_GD))
        matrix = sparse.csr_matrix((found.jaccard, found.columns, found.starts), shape, copy=True)
        matrix.sort_indices()
        return matrix
