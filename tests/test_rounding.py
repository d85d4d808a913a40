"""What float32 may be off, and the order of scores by float64."""

import math

import numpy as np
import pytest

from pipelines.retrieval.rounding import SAME, exact_order, exact_products, rounding_bound


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("dim", [2, 96, 768, 3000])
@pytest.mark.parametrize("kind", ["random", "all alike"])
def test_the_bound_holds_for_the_worst_order_of_adding_up(dim, kind):
    rng = np.random.default_rng(dim)
    shape = (200, dim)
    vectors = unit(rng.standard_normal(shape) if kind == "random" else 1 + 1e-3 * rng.random(shape))
    others = vectors[rng.permutation(200)]
    exact = (vectors.astype(np.float64) * others).sum(axis=1)
    one_by_one = np.cumsum(vectors * others, axis=1, dtype=np.float32)[:, -1]
    assert np.abs(one_by_one - exact).max() <= rounding_bound(dim) < 2e-7 * dim + 1e-6


def test_a_pair_has_one_product_whatever_else_is_asked_for():
    rng = np.random.default_rng(0)
    left = unit(rng.standard_normal((30, 700)))
    right = unit(rng.standard_normal((40, 700)))
    left_rows, right_rows = rng.integers(30, size=500), rng.integers(40, size=500)
    found = exact_products(left, left_rows, right, right_rows)
    for pair in range(0, 500, 7):
        one = slice(pair, pair + 1)
        assert exact_products(left, left_rows[one], right, right_rows[one]) == found[one]
        terms = left[left_rows[pair]].astype(float) * right[right_rows[pair]].astype(float)
        assert found[pair] == pytest.approx(math.fsum(terms), abs=SAME / 2)


def test_scores_within_a_hair_are_ordered_by_row():
    group = np.array([1, 0, 0, 0, 0, 1, 0])
    score = np.array([0.5, 0.2, 0.2 + SAME / 2, 0.2 + SAME, 0.9, 0.6, 0.2 - 3 * SAME])
    row = np.array([7, 1, 2, 0, 9, 8, 0])
    order = exact_order(group, score, row, np.full(7, SAME))
    assert order.tolist() == [4, 3, 1, 2, 6, 5, 0]


def test_no_pairs_have_no_order():
    none = np.empty(0, int)
    assert exact_order(none, np.empty(0), none, np.empty(0)).tolist() == []
