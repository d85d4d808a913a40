"""Nearest neighbours against a stable sort of whole rows of scores."""

import numpy as np
import pytest
import torch

from pipelines.retrieval.neighbours import GROUP, _Tiles, nearest, nearest_among

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def signs(rng, rows):
    """Few different vectors, exact in float32: ties everywhere."""
    return rng.choice([-0.25, 0.25], (rows, 16), p=[0.3, 0.7]).astype(np.float32)


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def agree_with_a_stable_sort(found, queries, base, k):
    scores = queries @ base.T
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(found.index, order)
    np.testing.assert_array_equal(found.score, np.take_along_axis(scores, order, axis=1))
    np.testing.assert_array_equal(found.lowest, scores.min(axis=1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_mb", [0, 128])
@pytest.mark.parametrize("seed", range(12))
def test_equals_a_stable_sort_where_scores_are_tied(seed, memory_mb, device):
    rng = np.random.default_rng(seed)
    base = signs(rng, int(rng.integers(1, 400)))
    queries = signs(rng, int(rng.integers(1, 60)))
    k = int(rng.integers(1, 40))
    options = {"memory_mb": memory_mb, "device": device}
    agree_with_a_stable_sort(nearest(queries, base, k, **options), queries, base, k)
    agree_with_a_stable_sort(nearest_among(base, k, **options), base, base, k)


@pytest.mark.parametrize("order", ["best last", "best first", "shuffled"])
def test_the_order_of_the_rows_plays_no_part(order):
    """Best last: every row lies above the bar, which is the slowest way through."""
    rng = np.random.default_rng(0)
    steps = np.arange(3000) / 4096
    if order == "shuffled":
        rng.shuffle(steps)
    elif order == "best first":
        steps = steps[::-1]
    base = np.stack([steps, 1 - steps], axis=1).astype(np.float32)
    queries = np.array([[1, 0], [0, 1], [-1, 0.5]], np.float32)
    for memory_mb in (1, 128):
        found = nearest(queries, base, 33, memory_mb=memory_mb)
        agree_with_a_stable_sort(found, queries, base, 33)
    sample = base[::4]
    agree_with_a_stable_sort(nearest_among(sample, 33, memory_mb=1), sample, sample, 33)


@pytest.mark.parametrize("rows", [353, 705, 1201])
def test_equal_vectors_get_equal_scores_whatever_tile_they_are_in(rows):
    rng = np.random.default_rng(rows)
    base = unit(rng.standard_normal((rows, 96)))
    base[rng.choice(rows, rows // 2, replace=False)] = base[rng.integers(rows, size=rows // 2)]
    _, same = np.unique(base, axis=0, return_inverse=True)
    found = nearest_among(base, 25, memory_mb=4)
    kind = same.ravel()[found.index]
    pairs = kind[:, 1:] == kind[:, :-1]
    assert pairs.any()
    assert (found.score[:, 1:] == found.score[:, :-1])[pairs].all()
    assert (found.index[:, 1:] > found.index[:, :-1])[pairs].all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_mb", [1, 64])
def test_neighbours_too_close_for_float32_come_in_the_order_of_float64(memory_mb, device):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((150, 512)).repeat(8, axis=0)
    base = unit(centres + 2e-5 * rng.standard_normal(centres.shape))
    queries = unit(rng.standard_normal((40, 512)) + 30 * base[::30])
    exact = queries.astype(np.float64) @ base.T.astype(np.float64)
    order = np.argsort(-exact, axis=1, kind="stable")[:, :12]
    gaps = -np.diff(np.take_along_axis(exact, order, axis=1), axis=1)
    assert ((gaps < 5e-7) & (gaps > 2e-9)).sum() > 40
    found = nearest(queries, base, 12, memory_mb=memory_mb, device=device)
    np.testing.assert_array_equal(found.index, order)
    both = np.concatenate([queries, base])
    found = nearest_among(both, 5, memory_mb=memory_mb, device=device)
    exact = both.astype(np.float64) @ both.T.astype(np.float64)
    np.testing.assert_array_equal(found.index, np.argsort(-exact, axis=1, kind="stable")[:, :5])


@pytest.mark.parametrize("length", [1, 15, 16, 17, 1440, 1441, 2881, 100_000, 128_170])
def test_bands_are_of_nearly_one_length(length):
    vectors = np.zeros((length, 1), np.float32)
    tiles = _Tiles(vectors, vectors, 64, "cpu")
    bands = tiles.bands(length)
    assert [i for band in bands for i in range(band.start, band.stop)] == list(range(length))
    lengths = [band.stop - band.start for band in bands]
    assert max(lengths) <= tiles.side
    assert max(lengths) - min(lengths) <= 2 * GROUP


def test_zero_and_minus_zero_are_tied():
    base = np.array([[-0.0], [0.0], [-0.0], [1.0], [0.0]], np.float32)
    queries = np.array([[1.0], [-1.0]], np.float32)
    assert nearest(queries, base, 5).index.tolist() == [[3, 0, 1, 2, 4], [0, 1, 2, 4, 3]]


def test_read_only_vectors_are_searched_without_a_warning(recwarn):
    base = signs(np.random.default_rng(1), 50)
    base.setflags(write=False)
    agree_with_a_stable_sort(nearest(base[:7], base, 5), base[:7], base, 5)
    assert not recwarn.list


def test_no_queries():
    found = nearest(np.empty((0, 4), np.float32), np.ones((3, 4), np.float32), 2)
    assert found.index.shape == found.score.shape == (0, 2)


def test_what_cannot_be_searched_is_refused():
    base = np.ones((3, 4), np.float32)
    with pytest.raises(ValueError, match="k=0"):
        nearest(base, base, 0)
    with pytest.raises(ValueError, match="no base rows"):
        nearest(base, base[:0], 1)
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 2\)"):
        nearest(base, base[:, :2], 1)
