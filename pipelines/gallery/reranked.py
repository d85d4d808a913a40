"""Search with k-reciprocal re-ranking: who is the query's neighbour, and whose neighbour is it?

`pipelines.retrieval.gallery_reranking` says what is looked up; here the shards answer. Thousands of
look-ups serve one query, and queries of one place or of one person ask for the same rows again, so
answers are kept until the call ends.

Shapes: Q queries, n vectors, K hits, C candidates of a query, D embedding dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.errors import UserError
from pipelines.gallery.exact import Found, search_exact
from pipelines.gallery.shard import Positions, Shard, Vectors
from pipelines.retrieval.gallery_reranking import CANDIDATES, Ids, rerank_in_gallery
from pipelines.retrieval.reranking import check_settings
from pipelines.retrieval.settings import Rerank

KEPT_BYTES = 64 << 20
ENTRY_BYTES = 500
"""What Python takes for an answer beside its numbers."""


@dataclass(frozen=True, kw_only=True)
class Reranking(Rerank):
    """How hits are re-ranked; a `UserError` names settings that mean nothing."""

    candidates: int = CANDIDATES
    """Best rows of a query that are reordered."""

    def __post_init__(self) -> None:
        try:
            check_settings(self.k1, self.k2, self.weight)
        except ValueError as error:
            raise UserError(f"rerank: {error}") from error
        if self.candidates < 1:
            raise UserError(f"rerank: candidates={self.candidates}: reorder at least one row")


def search_reranked(
    shards: Sequence[Shard], queries_QD: Vectors, top_k: int, settings: Reranking
) -> list[Found]:
    """The `top_k` best of each query's candidates, best first, equal ones by id.

    Args:
        shards: at least one.
        queries_QD: [Q, D] float32 unit vectors.
        top_k: where it is more than the candidates, so many are reordered instead.

    The scores are minus the final distances. Each query is taken alone with the whole gallery.

    Memory: that of `rerank_in_gallery` and `search_exact`, 64 MiB of answers (more within one batch
    of look-ups), and 16 bytes a vector of the gallery.
    """
    look_ups = _LookUps(shards)
    reordered = rerank_in_gallery(
        queries_QD,
        look_ups.search,
        look_ups.vectors,
        candidates=max(settings.candidates, top_k),
        k1=settings.k1,
        k2=settings.k2,
        weight=settings.weight,
    )
    found = []
    for ids_C, score_C in reordered:
        shard_K, position_K = look_ups.places(ids_C[:top_k])
        found.append(Found(shard=shard_K, position=position_K, score=score_C[:top_k]))
    return found


class _LookUps:
    """Rows of all shards by id, and their neighbours; answers are kept by the vector asked."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self._ids = np.concatenate([shard.ids for shard in shards])
        self._order = np.argsort(self._ids, kind="stable")
        self._known: dict[tuple[int, bytes], tuple[Ids, Vectors]] = {}
        self._bytes = 0

    def search(self, vectors_nD: Vectors, k: int) -> tuple[Ids, Vectors]:
        """Ids and cosines [n, K] of the best rows, K = min(k, gallery)."""
        keys = [(k, vector_D.tobytes()) for vector_D in vectors_nD]
        new = {key: place for place, key in enumerate(keys) if key not in self._known}
        answers = search_exact(self._shards, vectors_nD[list(new.values())], k)
        for key, one in zip(new, answers, strict=True):
            ids_K = self._ids[self._starts[one.shard] + one.position]
            self._known[key] = ids_K, one.score
            self._bytes += _size(key, ids_K)
        ids_nK = np.stack([self._known[key][0] for key in keys])
        score_nK = np.stack([self._known[key][1] for key in keys])
        while self._bytes > KEPT_BYTES:
            oldest = next(iter(self._known))
            self._bytes -= _size(oldest, self._known.pop(oldest)[0])
        return ids_nK, score_nK

    def vectors(self, ids_n: Ids) -> Vectors:
        """[n, D] The vectors of rows."""
        shard_n, position_n = self.places(ids_n)
        vectors_nD = np.empty((len(ids_n), self._shards[0].vectors.shape[1]), np.float32)
        for number, shard in enumerate(self._shards):
            chosen = shard_n == number
            vectors_nD[chosen] = shard.vectors[position_n[chosen]]
        return vectors_nD

    def places(self, ids_n: Ids) -> tuple[Positions, Positions]:
        """Shard numbers and positions [n] of rows."""
        row_n = self._order[np.searchsorted(self._ids, ids_n, sorter=self._order)]
        shard_n = np.searchsorted(self._starts, row_n, side="right") - 1
        return shard_n, row_n - self._starts[shard_n]


def _size(key: tuple[int, bytes], ids_K: Ids) -> int:
    return len(key[1]) + 12 * len(ids_K) + ENTRY_BYTES
