"""The order of float64 from proposals that are off by all that float32 may be."""

import numpy as np
import pytest

from pipelines.retrieval.rounding import SAME, rounding_bound
from pipelines.retrieval.settling import settle


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def exact_scores(queries, base):
    return np.stack([(queries.astype(np.float64) * row).sum(axis=1) for row in base], axis=1)


def proposals(scores, count):
    index = np.argsort(-scores, axis=1, kind="stable")[:, :count].astype(np.int32)
    return index, np.take_along_axis(scores, index, axis=1).astype(np.float32)


def check(found, scores, k):
    index, score = found
    expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    gaps = np.take_along_axis(scores, index, axis=1) - np.take_along_axis(scores, expected, axis=1)
    assert np.abs(gaps).max() <= SAME
    sure = (gaps == 0).all(axis=1)  # scores closer than SAME may stand in either order
    np.testing.assert_array_equal(index[sure], expected[sure])
    assert (np.diff(score, axis=1) <= 0).all()


@pytest.mark.parametrize("seed", range(60))
def test_a_processor_that_errs_by_the_whole_bound_changes_nothing(seed):
    rng = np.random.default_rng(seed)
    dim, rows = int(rng.choice([8, 64, 512])), int(rng.choice([40, 200, 700]))
    kinds = rng.standard_normal((max(1, rows // int(rng.choice([1, 10, 100]))), dim))
    base = kinds[rng.integers(len(kinds), size=rows)]
    base = base + 10.0 ** -rng.integers(1, 7) * rng.standard_normal(base.shape)
    base = unit(base) * rng.uniform(0.9, 1, (rows, 1)).astype(np.float32)
    if seed % 3 == 0:
        base = base[rng.integers(rows, size=rows)]
    queries = base[:20]
    scores = exact_scores(queries, base)
    length = np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    error = (rounding_bound(dim) - 2.0**-23) * length * np.linalg.norm(base, axis=1).max()
    sign = rng.choice([-1, 1], scores.shape) if seed % 2 else rng.uniform(-1, 1, scores.shape)
    k = int(rng.integers(1, 25))
    count = min(k + int(rng.choice([1, 2, 8])), rows)
    check(settle(*proposals(scores + error * sign, count), queries, base, k), scores, k)


def test_what_was_not_proposed_counts_where_it_may_be_exactly_as_good():
    """A copy with a lower number, which float32 has put last."""
    base = np.array([[1.0], [1.0], [1.0]], np.float32)
    error = np.float32(rounding_bound(1))
    index = np.array([[1, 2]], np.int32)
    score = np.array([[1.0, 1.0 - error]], np.float32)
    assert settle(index, score, base[:1], base, 1)[0].tolist() == [[0]]


def test_copies_stand_by_row_whatever_scores_they_were_given():
    rng = np.random.default_rng(0)
    base = unit(rng.standard_normal((6, 96))).repeat(5, axis=0)
    queries = unit(base[::5] + 0.1 * rng.standard_normal((6, 96)))
    scores = exact_scores(queries, base)
    for noise in (0.0, 1e-7):
        given = proposals(scores + noise * rng.uniform(-1, 1, scores.shape), 12)
        check(settle(*given, queries, base, 9), scores, 9)
        assert (np.diff(settle(*given, queries, base, 5)[0], axis=1) == 1).all()


@pytest.mark.parametrize("length", [1e2, 1e4, 1e6])
def test_one_long_vector_does_not_blur_the_others(length):
    rng = np.random.default_rng(0)
    base = unit(rng.standard_normal((1, 64)) + 1e-4 * rng.standard_normal((400, 64)))
    queries = base[:50]
    base = np.concatenate([base, -base[:1] * np.float32(length)])
    scores = exact_scores(queries, base)
    check(settle(*proposals(scores, 13), queries, base, 5), scores, 5)


def test_rows_that_get_better_all_the_way():
    """Every tile of the search in float64 holds better ones than those before."""
    rng = np.random.default_rng(0)
    direction = unit(rng.standard_normal((1, 16)))
    base = (direction * (1 + 3e-10 * np.arange(1300)[:, None])).astype(np.float32)
    scores = exact_scores(direction, base)
    worst = np.arange(9, dtype=np.int32)[None]
    given = np.full((1, 9), scores[0, 0], np.float32)
    check(settle(worst, given, direction, base, 4), scores, 4)


def test_lengths_that_float32_products_cannot_hold_are_refused():
    base = np.ones((12, 4), np.float32)
    index, score = proposals(np.ones((12, 12)), 9)
    for factor in (3e19, np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN, infinity or products beyond float32"):
            settle(index, score, np.float32(factor) * base, np.float32(factor) * base, 3)


def test_no_queries_need_no_settling():
    none = np.empty((0, 3), np.float32)
    index, score = settle(np.empty((0, 3), np.int32), none, none, np.ones((9, 3), np.float32), 2)
    assert index.shape == score.shape == (0, 2)
