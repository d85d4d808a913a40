import numpy as np
import pytest

from pipelines.counter_random import counter_hash, generator_seed, permutation, uniform

MASK = (1 << 64) - 1
FROZEN = [
    1927618558350093866,
    7192185014346937746,
    16656577448085056988,
    2051506163518912054,
]
FROZEN_ORDER = [4, 2, 6, 0, 3, 7, 5, 1]


def reference_hash(*parts: int) -> int:
    """The documented arithmetic in Python's own integers."""
    state = 0x6A09E667F3BCC908
    for part in parts:
        state = ((state ^ (part & MASK)) + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return state


@pytest.mark.parametrize("parts", [(), (0,), (1, 2, 3), (-1, 5), (2**63, MASK), (7, -(2**63))])
def test_hash_is_the_documented_arithmetic(parts):
    assert int(counter_hash(*parts)) == reference_hash(*parts)


def test_values_never_change():
    assert [int(counter_hash(*p)) for p in [(0,), (1,), (1, 2, 3), ("batch", 7, 0)]] == FROZEN
    assert permutation(8, "order", 5).tolist() == FROZEN_ORDER


def test_arrays_broadcast_and_agree_with_single_values():
    rows, columns = np.arange(-3, 4)[:, None], np.arange(5, dtype=np.uint8)[None]
    table = counter_hash("table", rows, 9, columns)
    assert table.shape == (7, 5)
    assert table.dtype == np.uint64
    single = [[int(counter_hash("table", r, 9, c)) for c in range(5)] for r in range(-3, 4)]
    assert table.tolist() == single


def test_order_and_number_of_parts_count():
    values = [(), (0,), (0, 0), (1, 2), (2, 1), ("a", 1), ("b", 1), (1, "a"), ("a",)]
    assert len({int(counter_hash(*v)) for v in values}) == len(values)


def test_refuses_what_is_no_integer():
    with pytest.raises(ValueError, match="float64"):
        counter_hash(1, np.zeros(3))
    with pytest.raises(ValueError, match=str(2**64)):
        counter_hash(2**64)


def test_uniform_fills_the_unit_interval_evenly():
    draws = uniform("even", 1, np.arange(200_000))
    assert draws.dtype == np.float64
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=100, range=(0, 1))[0]
    chi_square = ((counts - 2000.0) ** 2 / 2000).sum()
    assert 50 < chi_square < 160  # 99 degrees of freedom: far beyond the 0.1 % tails


@pytest.mark.parametrize("lag", [1, 2, 64, 4096])
def test_neighbours_are_unrelated(lag):
    n = np.arange(100_000)
    limit = 5 / np.sqrt(len(n))
    assert abs(np.corrcoef(uniform(3, n), uniform(3, n + lag))[0, 1]) < limit
    assert abs(np.corrcoef(uniform(3, n), uniform(3 + lag, n))[0, 1]) < limit
    changed = np.unpackbits((counter_hash(3, n) ^ counter_hash(3, n + lag)).view(np.uint8))
    assert abs(changed.mean() - 0.5) < 0.001
    by_bit = changed.reshape(len(n), 64).mean(axis=0)
    assert np.abs(by_bit - 0.5).max() < limit


def test_permutation_is_one_and_every_place_is_as_likely():
    assert sorted(permutation(1000, 1).tolist()) == list(range(1000))
    assert permutation(0, 1).shape == (0,)
    assert permutation(6, 1, 2).dtype == np.int64
    draws = np.stack([permutation(5, "places", i) for i in range(5000)])
    for place in range(5):
        counts = np.bincount(draws[:, place], minlength=5)
        assert np.abs(counts - 1000).max() < 150  # five standard deviations


def test_generator_seed_is_what_torch_takes():
    seeds = [generator_seed("step", 1, step, rank) for step in range(100) for rank in range(8)]
    assert len(set(seeds)) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)
