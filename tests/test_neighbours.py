"""Nearest neighbours against a stable sort of whole rows of scores."""

import numpy as np
import pytest
import torch

from pipelines.retrieval.neighbours import GROUP, SPARE, _Tiles, nearest, nearest_among
from pipelines.retrieval.rounding import SAME, rounding_bound

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


def agree_in_float64(found, queries, base):
    """By (score down, row up); scores within `SAME` in any order, copies by row all the same."""
    scores = np.stack([(queries.astype(np.float64) * row).sum(axis=1) for row in base], axis=1)
    chosen = np.take_along_axis(scores, found.index, axis=1)
    steps = np.diff(chosen, axis=1)
    assert (steps <= SAME).all()
    assert (np.diff(found.index, axis=1)[steps == 0] > 0).all()
    last = chosen[:, -1:]
    assert ((scores > last + SAME).sum(axis=1) == (chosen > last + SAME).sum(axis=1)).all()
    left_out = scores == last
    np.put_along_axis(left_out, found.index, False, axis=1)
    tied, row = left_out.nonzero()
    assert (row > found.index[tied, -1]).all()
    assert np.abs(found.score - chosen).max() <= rounding_bound(base.shape[1])


@pytest.mark.parametrize("memory_mb", [1, 64])
@pytest.mark.parametrize("noise", [0.0, 1e-6, 2e-5])
@pytest.mark.parametrize("copies", [SPARE - 2, 100, 700])
def test_a_group_of_near_copies_may_be_larger_than_what_is_proposed(copies, noise, memory_mb):
    rng = np.random.default_rng(copies)
    centres = rng.standard_normal((700 // copies + 1, 256)).repeat(copies, axis=0)
    base = unit(centres + noise * rng.standard_normal(centres.shape))
    base = base[rng.permutation(len(base))]
    queries = unit(base[:50] + 0.3 * rng.standard_normal((50, 256)) / 16)
    found = nearest(queries, base, 5, memory_mb=memory_mb)
    agree_in_float64(found, queries, base)
    agree_in_float64(nearest_among(base, 5, memory_mb=memory_mb), base, base)


@pytest.mark.parametrize("dim", [1000, 3000])
def test_products_that_err_all_the_same_way_are_ordered_right(dim):
    """Sums of equal terms: the error of float32 grows with D, not with its root."""
    rng = np.random.default_rng(dim)
    base = unit(1 + 1e-3 * rng.random((300, dim)) * rng.random((300, 1)))
    agree_in_float64(nearest_among(base, 12), base, base)


def test_all_vectors_alike():
    base = np.full((2500, 96), 96**-0.5, np.float32)
    assert (nearest_among(base, 7).index == np.arange(7)).all()
    assert (nearest(0 * base[:3], base, 7).index == np.arange(7)).all()


def test_long_and_short_vectors_are_ordered_as_unit_vectors_are():
    rng = np.random.default_rng(3)
    base = unit(rng.standard_normal((40, 64)).repeat(20, axis=0))
    base = unit(base + 1e-6 * rng.standard_normal(base.shape))
    expected = nearest(base, base, 5).index
    for factor in (2.0**-20, 2.0**20):
        found = nearest(base, np.float32(factor) * base, 5)
        np.testing.assert_array_equal(found.index, expected)


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
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN, infinity"):
            nearest(base, np.where(np.eye(3, 4) == 0, base, np.float32(bad)), 1)
