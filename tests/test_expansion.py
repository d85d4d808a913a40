"""Alpha query expansion, one query and one row at a time."""

import numpy as np
import pytest

from pipelines.retrieval import Expansion, Settings, evaluate
from pipelines.retrieval import expansion as module
from pipelines.retrieval.expansion import expand_queries
from pipelines.retrieval.vectors import HeldVectors
from tests.embedding_files import embedding_set, random_table


def unit_rows(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    vectors = rng.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def slow_expansion(queries, gallery, k: int, alpha: float) -> np.ndarray:
    result = []
    for query in queries.astype(np.float64):
        scores = [(float(query @ row), row) for row in gallery.astype(np.float64)]
        total = query.copy()
        for score, row in sorted(scores, key=lambda pair: -pair[0])[:k]:
            if score >= 0:
                total = total + score**alpha * row
        result.append(total / np.linalg.norm(total))
    return np.array(result)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 5, 40, 500])
def test_expanded_queries_equal_the_reference(k, alpha):
    rng = np.random.default_rng(k)
    queries, gallery = unit_rows(rng, 12, 24), unit_rows(rng, 130, 24)
    found = expand_queries(queries, HeldVectors(gallery), k=k, alpha=alpha)
    assert found.dtype == np.float32
    assert np.allclose(found, slow_expansion(queries, gallery, k, alpha), atol=1e-6)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("width", [1, 7, 64, 130])
def test_blocks_of_the_gallery_change_nothing(monkeypatch, width):
    rng = np.random.default_rng(0)
    queries, gallery = unit_rows(rng, 9, 16), unit_rows(rng, 130, 16)
    whole = expand_queries(queries, HeldVectors(gallery), k=10, alpha=2.0)
    monkeypatch.setattr(module, "BLOCK_ROWS", width)
    parts = expand_queries(queries, HeldVectors(gallery), k=10, alpha=2.0)
    assert np.allclose(parts, whole, atol=1e-6)


def test_rows_on_the_other_side_have_no_weight_whatever_alpha():
    query = np.array([[1.0, 0]], dtype=np.float32)
    gallery = np.array([[-0.6, 0.8], [-1, 0]], dtype=np.float32)
    for alpha in (0.0, 3.0):
        assert expand_queries(query, HeldVectors(gallery), k=2, alpha=alpha).tolist() == [[1, 0]]


def test_figures_are_those_of_the_expanded_queries(tmp_path):
    embeddings = embedding_set(tmp_path, random_table(4))
    how = Settings(protocol="any_camera", resamples=0, expansion=Expansion(k=4, alpha=1.0))
    found = evaluate(embeddings, how)
    vectors = embeddings.vectors.copy()
    kept = embeddings.rows.to_pylist()
    gallery = [i for i, r in enumerate(kept) if r["split"] == "gallery" and r["role"] != "junk"]
    queries = [i for i, r in enumerate(kept) if r["split"] == "query"]
    vectors[queries] = expand_queries(
        vectors[queries], HeldVectors(vectors[gallery]), k=4, alpha=1.0
    )
    moved = type(embeddings)(rows=embeddings.rows, vectors=vectors)
    expected = evaluate(moved, Settings(protocol="any_camera", resamples=0)).metrics
    assert found.metrics == pytest.approx(expected, abs=0.2)
    assert found.protocol["expansion"] == {"k": 4, "alpha": 1.0}
    assert found.metrics != evaluate(embeddings, Settings(protocol="any_camera")).metrics
