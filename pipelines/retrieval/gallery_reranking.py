"""k-reciprocal re-ranking against a gallery that is already built and only answers look-ups.

The published algorithm (Zhong, Zheng, Cao, Li, CVPR 2017; see `pipelines.retrieval.reranking`)
takes all queries together with the gallery, so that queries also are each other's neighbours. A
service gets its queries one by one and must not let them depend on each other: here every query is
taken alone with the whole gallery. Of that, the encodings of the query and of its candidates need

1. the lists of neighbours of the candidates and of the first k2 in each of these lists (rows whose
   encodings the query expansion averages),
2. the lists of all in those lists (who of them is reciprocal?),
3. the lists of the first round(k1 / 2) + 1 of each reciprocal one (whom does it add?),

and the farthest row of those under 1. They are looked up in one batch a step; the gallery's lists
know nothing of the query, which is put in where it ranks. The distances of the candidates are those
of the whole algorithm, not an approximation.

Shapes: Q queries, D embedding dimension, C candidates, L rows looked up, K length of the lists.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.retrieval.neighbours import Neighbours
from pipelines.retrieval.reciprocal import distance, encode, pair_scores_of
from pipelines.retrieval.reranking import K1, K2, WEIGHT, check_settings, similarities
from pipelines.retrieval.vectors import Vectors

Ids = npt.NDArray[np.int64]
Search = Callable[[Vectors, int], tuple[Ids, Vectors]]
Fetch = Callable[[Ids], Vectors]

CANDIDATES = 100
QUERY = -1
WORK_MB = 64


class Reordered(NamedTuple):
    """The candidates of one query, best first, equal ones by id."""

    ids: Ids
    """[C]"""
    score: Vectors
    """[C] minus the final distance."""


def rerank_in_gallery(
    queries_QD: Vectors,
    search: Search,
    vectors: Fetch,
    *,
    candidates: int = CANDIDATES,
    k1: int = K1,
    k2: int = K2,
    weight: float = WEIGHT,
) -> list[Reordered]:
    """Reorder the first `candidates` gallery rows of each query, every query by itself.

    Args:
        queries_QD: [Q, D] float32 unit vectors.
        search: (vectors [n, D], k) -> ids [n, K] and inner products [n, K] of the K = min(k,
            gallery) best rows, exact, ordered by (score down, id up); products summed in float64
            and rounded to float32. Ids are at least 0. It is also asked for the best of -v, which
            is the farthest of v.
        vectors: ids [n] -> [n, D] float32 unit vectors of these rows.
        candidates: rows that are reordered and returned (all, if the gallery has fewer).
        k1, k2, weight: as in `pipelines.retrieval.reranking.rerank`.

    Memory: one query at a time; 4 D + 12 K bytes a row looked up and about 64 MiB. At most C k2
    (k1 + 1) (round(k1 / 2) + 1) rows are; in Market-1501, where neighbours have neighbours in
    common, some 3,500 for 100 candidates and 1,300 for 20.

    Raises:
        ValueError: candidates, k1 or k2 below 1, or a weight outside [0, 1].
    """
    check_settings(k1, k2, weight)
    if candidates < 1:
        raise ValueError(f"candidates={candidates}: at least 1")
    return [
        _rerank_one(
            _Surroundings(query_D, search, vectors, max(k1 + 1, k2)), candidates, k1, k2, weight
        )
        for query_D in queries_QD
    ]


class _Surroundings:
    """The rows around a query whose lists of neighbours, among query and gallery, are known."""

    def __init__(self, query_D: Vectors, search: Search, vectors: Fetch, length: int) -> None:
        self._search, self._fetch, self._length = search, vectors, length
        self.query_D = query_D
        self.ids = np.empty(0, np.int64)
        self.vectors_LD = np.empty((0, len(query_D)), np.float32)
        self.list_ids_LK = np.empty((0, 0), np.int64)
        self.list_scores_LK = np.empty((0, 0), np.float32)

    def start(self, candidates: int) -> tuple[Ids, Vectors]:
        """Take up the query; its candidates' ids and scores, each [C]."""
        query_1D = self.query_D[None]
        found, scores = self._search(query_1D, max(candidates, self._length))
        self._take_up(np.array([QUERY]), query_1D, found, scores)
        return found[0, :candidates], scores[0, :candidates]

    def add(self, ids: Ids) -> None:
        """Take up the rows that are not yet here."""
        new = np.setdiff1d(ids, self.ids)
        if len(new):
            vectors_LD = self._fetch(new)
            self._take_up(new, vectors_LD, *self._search(vectors_LD, self._length))

    def numbers(self, ids: Ids) -> npt.NDArray[np.int64]:
        """Places of the rows here, in the shape of `ids`; -1 for rows that are not."""
        place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[place] == ids, place, -1)

    def first(self, ids: Ids, count: int) -> Ids:
        """[n, count] The first neighbours of rows that are here."""
        return self.list_ids_LK[self.numbers(ids), :count]

    def reciprocal(self, ids: Ids, count: int) -> Ids:
        """Those of the first neighbours of these rows that have the row among their own."""
        forward = self.first(ids, count)
        back = (self.first(forward, count) == ids[:, None, None]).any(axis=2)
        return np.unique(forward[back])

    def lists(self, used: Ids) -> Neighbours:
        """All lists, by places; the farthest row is looked up only for the rows that are used."""
        lowest = np.full(len(self.ids), -1, np.float32)
        places = self.numbers(used)
        rows = self.vectors_LD[places]
        farthest = -self._search(-rows, 1)[1][:, 0]
        lowest[places] = np.minimum(farthest, self._with_query(rows))
        index = self.numbers(self.list_ids_LK).astype(np.int32)
        return Neighbours(index=index, score=self.list_scores_LK, lowest=lowest)

    def _take_up(self, ids: Ids, vectors_LD: Vectors, found: Ids, scores: Vectors) -> None:
        # the query is the first row of all: before others at the same distance
        all_ids = np.concatenate([np.full((len(ids), 1), QUERY), found], axis=1)
        all_scores = np.concatenate([self._with_query(vectors_LD)[:, None], scores], axis=1)
        order = np.argsort(-all_scores, axis=1, kind="stable")[:, : self._length]
        list_ids = np.take_along_axis(all_ids, order, axis=1)
        list_scores = np.take_along_axis(all_scores, order, axis=1)
        if len(self.ids):
            ids = np.concatenate([self.ids, ids])
            vectors_LD = np.concatenate([self.vectors_LD, vectors_LD])
            list_ids = np.concatenate([self.list_ids_LK, list_ids])
            list_scores = np.concatenate([self.list_scores_LK, list_scores])
        by_id = np.argsort(ids)
        self.ids, self.vectors_LD = ids[by_id], vectors_LD[by_id]
        self.list_ids_LK, self.list_scores_LK = list_ids[by_id], list_scores[by_id]

    def _with_query(self, vectors_LD: Vectors) -> Vectors:
        products = vectors_LD.astype(np.float64) * self.query_D
        return products.sum(axis=1).astype(np.float32)


def _rerank_one(
    around: _Surroundings, candidates: int, k1: int, k2: int, weight: float
) -> Reordered:
    ids, scores = around.start(candidates)
    around.add(ids)
    encoded_ids = np.append(ids, QUERY)
    if k2 > 1:
        encoded_ids = np.union1d(encoded_ids, around.first(encoded_ids, k2))
    around.add(encoded_ids)
    around.add(around.first(encoded_ids, k1 + 1))
    likes = around.reciprocal(encoded_ids, k1 + 1)
    around.add(around.first(likes, round(k1 / 2) + 1))

    lists = around.lists(encoded_ids)
    pair_scores = pair_scores_of(around.vectors_LD)
    encoded = encode(lists, pair_scores, k1=k1, k2=k2, memory_mb=WORK_MB)
    places, query = around.numbers(ids), int(around.numbers(np.array([QUERY]))[0])
    _, columns, jaccard = similarities(
        encoded[query : query + 1], encoded[places], memory_mb=WORK_MB
    )
    final = weight * distance(scores, lists.lowest[query])
    final += 1 - weight
    final[columns] -= (1 - weight) * jaccard
    order = np.lexsort((ids, final))
    return Reordered(ids[order], -final[order].astype(np.float32))
