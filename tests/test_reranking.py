"""Re-ranking against the published algorithm on whole matrices, and against known figures."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.retrieval.reranking import rerank
from tests.slow_reranking import dense_rerank, reciprocal


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def clustered(rng, rows, identities=6, dim=16, noise=0.5):
    centres = rng.standard_normal((identities, dim))
    vectors = centres[rng.integers(identities, size=rows)]
    return unit(vectors + noise * rng.standard_normal(vectors.shape))


def with_duplicates(rng, rows):
    """Clusters of which a third of the rows stand there twice or more often."""
    vectors = clustered(rng, rows)
    copies = rng.random(rows) < 0.33
    vectors[copies] = vectors[rng.integers(rows, size=copies.sum())]
    return vectors


def signs(rng, rows):
    """Few different vectors, exact in float32: ties everywhere."""
    return rng.choice([-0.25, 0.25], (rows, 16), p=[0.2, 0.8]).astype(np.float32)


def spread(rng, rows):
    return unit(rng.standard_normal((rows, 8)))


DATA = {"clustered": clustered, "duplicates": with_duplicates, "signs": signs, "spread": spread}
SETTINGS = [
    (20, 6, 0.3),
    (1, 1, 0.0),
    (5, 3, 0.5),
    (7, 1, 0.3),
    (4, 9, 0.1),
    (6, 2, 0.4),
    (3, 2, 1.0),
    (95, 4, 0.2),  # more neighbours than rows
]


def final_distances(reranked):
    """[Q, G] from tiles of odd sizes."""
    queries, gallery = reranked.queries_QD, reranked.gallery_GD
    scores = queries @ gallery.T
    for top in range(0, len(queries), 5):
        for left in range(0, len(gallery), 17):
            rows = slice(top, min(top + 5, len(queries)))
            columns = slice(left, min(left + 17, len(gallery)))
            reranked.adjust(scores[rows, columns], rows, columns)
    return -scores


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("k1", "k2", "weight"), SETTINGS)
@pytest.mark.parametrize("kind", DATA)
def test_equals_the_dense_algorithm(kind, k1, k2, weight, seed):
    rng = np.random.default_rng(seed)
    vectors = DATA[kind](rng, int(rng.integers(50, 90)))
    queries, gallery = vectors[:12], vectors[12:]
    expected = dense_rerank(queries, gallery, k1, k2, weight)
    found = final_distances(rerank(queries, gallery, k1=k1, k2=k2, weight=weight))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["duplicates", "signs"])
def test_the_reference_data_has_ties_at_the_border_of_the_lists(kind):
    vectors = DATA[kind](np.random.default_rng(0), 70).astype(np.float64)
    scores = np.sort(vectors @ vectors.T, axis=1)[:, ::-1]
    assert (scores[:, 5] == scores[:, 6]).any()


def test_the_sets_do_grow_in_the_reference_data():
    """Otherwise no test here would see the rows that R* adds."""
    vectors = clustered(np.random.default_rng(0), 70)
    without = dense_rerank(vectors[:12], vectors[12:], 5, 1, 0.0)
    found = rerank(vectors[:12], vectors[12:], k1=5, k2=1, weight=0.0)
    np.testing.assert_allclose(final_distances(found), without, atol=1e-5)
    order = np.argsort(-(vectors.astype(np.float64) @ vectors.T), axis=1, kind="stable")
    grown = [
        len(np.setdiff1d(reciprocal(order, c, 2), reciprocal(order, i, 5)))
        for i in range(70)
        for c in reciprocal(order, i, 5)
    ]
    assert max(grown) > 0


@pytest.mark.parametrize("memory_mb", [0, 1])
def test_the_bands_play_no_part(memory_mb):
    vectors = with_duplicates(np.random.default_rng(3), 150)
    narrow = rerank(vectors[:40], vectors[40:], memory_mb=memory_mb)
    wide = rerank(vectors[:40], vectors[40:])
    np.testing.assert_allclose(final_distances(narrow), final_distances(wide), atol=1e-6)


def test_one_query():
    vectors = clustered(np.random.default_rng(5), 60)
    found = final_distances(rerank(vectors[:1], vectors[1:]))
    expected = dense_rerank(vectors[:1], vectors[1:], 20, 6, 0.3)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_one_query_and_one_gallery_row():
    vectors = unit(np.array([[1.0, 2.0], [2.0, 1.0]]))
    found = final_distances(rerank(vectors[:1], vectors[1:]))
    np.testing.assert_allclose(found, dense_rerank(vectors[:1], vectors[1:], 20, 6, 0.3), atol=1e-5)


def test_equal_vectors_are_at_distance_zero():
    vectors = np.full((9, 4), 0.5, np.float32)
    found = final_distances(rerank(vectors[:2], vectors[2:], k1=20, k2=1))
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_top_rows_are_those_of_a_stable_sort():
    vectors = signs(np.random.default_rng(6), 80)
    reranked = rerank(vectors[:10], vectors[10:])
    distances = final_distances(reranked)
    index, scores = reranked.top([7, 2], 30)
    order = np.argsort(distances[[7, 2]], axis=1, kind="stable")[:, :30]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_array_equal(-scores, np.take_along_axis(distances[[7, 2]], order, axis=1))
    assert (np.diff(scores) == 0).any()
    assert reranked.top([0], 1000)[0].shape == (1, 70)


def test_pairs_without_common_neighbours_take_no_memory():
    vectors = clustered(np.random.default_rng(7), 600, identities=60, noise=0.05)
    reranked = rerank(vectors[:100], vectors[100:], k1=5, k2=2)
    assert len(reranked.columns) < 100 * 500 / 20
    assert reranked.starts[-1] == len(reranked.columns) == len(reranked.jaccard)


@pytest.mark.parametrize(
    "setting", [{"k1": 0}, {"k2": 0}, {"weight": -0.1}, {"weight": 2}], ids=str
)
def test_settings_that_mean_nothing_are_refused(setting):
    vectors = clustered(np.random.default_rng(8), 20)
    with pytest.raises(ValueError, match=f"{next(iter(setting))}={next(iter(setting.values()))}"):
        rerank(vectors[:5], vectors[5:], **setting)


def test_empty_sides_are_refused():
    vectors = clustered(np.random.default_rng(9), 20)
    with pytest.raises(ValueError, match="0 queries and 20 gallery rows"):
        rerank(vectors[:0], vectors)
    with pytest.raises(ValueError, match="20 queries and 0 gallery rows"):
        rerank(vectors, vectors[:0])


@pytest.mark.slow
def test_figures_of_the_market_embeddings(data_root):
    """Against the whole-matrix float32 algorithm on 3,368 queries and 15,913 gallery rows."""
    table = pq.read_table(data_root / "market1501_osnet_embeddings.parquet")
    vectors = unit(np.stack(table["embedding"].to_numpy(zero_copy_only=False)).astype(np.float32))
    is_query = np.array(table["split"].to_pylist()) == "query"
    camera = np.array(table["camera"].to_pylist(), dtype=object)
    identity = np.array(table["identity"].to_pylist(), dtype=object)
    identity[np.array(table["role"].to_pylist()) == "distractor"] = None
    queries, gallery = vectors[is_query], vectors[~is_query]
    reranked = rerank(queries, gallery)
    steps, trapezoids, penalties, firsts = [], [], [], []
    for query in range(len(queries)):
        if query % 100 == 0:
            band = slice(query, min(query + 100, len(queries)))
            scores = queries[band] @ gallery.T
            reranked.adjust(scores, band, slice(0, len(gallery)))
        order = np.argsort(-scores[query % 100], kind="stable")
        right = identity[~is_query][order] == identity[is_query][query]
        seen = camera[~is_query][order] == camera[is_query][query]
        ranks = np.flatnonzero(right[~(right & seen)])
        hits = np.arange(len(ranks))
        precision = (hits + 1) / (ranks + 1)
        before = np.where(ranks == 0, 1, hits / np.maximum(ranks, 1))
        steps.append(precision.mean())
        trapezoids.append((precision + before).mean() / 2)
        penalties.append(precision[-1])
        firsts.append(ranks[0])
    found = [np.mean(steps), np.mean(trapezoids), np.mean(penalties)]
    found += [np.mean(np.array(firsts) < rank) for rank in (1, 5, 10, 20)]
    expected = [35.9758, 35.0726, 12.2894, 55.4929, 66.8646, 72.2090, 77.5238]
    np.testing.assert_allclose(100 * np.array(found), expected, atol=0.01)
