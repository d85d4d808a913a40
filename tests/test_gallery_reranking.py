"""Re-ranking by look-ups against the dense algorithm, run for each query alone with the gallery."""

import numpy as np
import pytest

from pipelines.retrieval.gallery_reranking import rerank_in_gallery
from tests.slow_reranking import dense_rerank
from tests.test_reranking import DATA, SETTINGS


class PlainGallery:
    """Exact search over rows whose ids have gaps; counts its calls."""

    def __init__(self, vectors, ids):
        self.rows, self.ids, self.calls, self.searched = vectors, ids, 0, 0

    def search(self, vectors, k):
        self.calls += 1
        self.searched += len(vectors)
        products = self.rows.astype(np.float64) * vectors[:, None]
        scores = products.sum(axis=2).astype(np.float32)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return self.ids[order], np.take_along_axis(scores, order, axis=1)

    def vectors(self, ids):
        places = np.searchsorted(self.ids, ids)
        assert (self.ids[places] == ids).all()
        return self.rows[places]


def drawn(kind, seed, rows=60, queries=3):
    rng = np.random.default_rng(seed)
    vectors = DATA[kind](rng, rows + queries)
    ids = np.sort(rng.choice(10_000, rows, replace=False))
    return vectors[:queries], PlainGallery(vectors[queries:], ids)


@pytest.mark.parametrize("candidates", [7, 1000])
@pytest.mark.parametrize(("k1", "k2", "weight"), SETTINGS)
@pytest.mark.parametrize("kind", DATA)
def test_equals_the_dense_algorithm_for_each_query_alone(kind, k1, k2, weight, candidates):
    queries, gallery = drawn(kind, seed=k1)
    found = rerank_in_gallery(
        queries,
        gallery.search,
        gallery.vectors,
        candidates=candidates,
        k1=k1,
        k2=k2,
        weight=weight,
    )
    nearest_ids, _ = gallery.search(queries, candidates)
    for query, ids, reordered in zip(queries, nearest_ids, found, strict=True):
        assert sorted(reordered.ids) == sorted(ids)
        assert (np.diff(reordered.score) <= 0).all()
        expected = -dense_rerank(query[None], gallery.rows, k1, k2, weight)[0]
        places = np.searchsorted(gallery.ids, reordered.ids)
        np.testing.assert_allclose(reordered.score, expected[places], atol=1e-5)


def test_equal_distances_come_in_the_order_of_ids():
    queries, gallery = drawn("signs", seed=1)
    (first, *_) = rerank_in_gallery(queries, gallery.search, gallery.vectors)
    tied = np.diff(first.score) == 0
    assert tied.any()
    assert (np.diff(first.ids)[tied] > 0).all()


def test_a_query_does_not_depend_on_the_others():
    queries, gallery = drawn("clustered", seed=2)
    together = rerank_in_gallery(queries, gallery.search, gallery.vectors, k1=8, k2=3)
    alone = rerank_in_gallery(queries[1:2], gallery.search, gallery.vectors, k1=8, k2=3)
    np.testing.assert_array_equal(together[1].ids, alone[0].ids)
    np.testing.assert_array_equal(together[1].score, alone[0].score)


def test_looks_up_in_batches_and_only_what_is_near():
    queries, gallery = drawn("clustered", seed=3, rows=600, queries=1)
    (found,) = rerank_in_gallery(
        queries, gallery.search, gallery.vectors, candidates=8, k1=4, k2=2, weight=0.2
    )
    assert gallery.calls <= 6
    assert gallery.searched < 200
    expected = -dense_rerank(queries, gallery.rows, 4, 2, 0.2)[0]
    places = np.searchsorted(gallery.ids, found.ids)
    np.testing.assert_allclose(found.score, expected[places], atol=1e-5)


@pytest.mark.parametrize(
    "setting", [{"candidates": 0}, {"k1": 0}, {"k2": 0}, {"weight": 1.5}], ids=str
)
def test_settings_that_mean_nothing_are_refused(setting):
    queries, gallery = drawn("clustered", seed=4)
    with pytest.raises(ValueError, match=next(iter(setting))):
        rerank_in_gallery(queries, gallery.search, gallery.vectors, **setting)
