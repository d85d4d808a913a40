"""False alarm rates, thresholds and the histogram behind them, against all scores sorted."""

from dataclasses import replace

import numpy as np
import pytest

from pipelines.retrieval.open_set import suggest_threshold, true_rates
from pipelines.retrieval.pairs import Pairs
from pipelines.retrieval.ranking import Task, count_ranks, rank_all, score_pairs
from pipelines.retrieval.scorers import Cosine
from pipelines.retrieval.scores import (
    BINS,
    HIGHEST_RATE,
    SMALL,
    Histogram,
    bin_of,
    edge,
    floor_of_sample,
)
from pipelines.retrieval.vectors import HeldVectors
from tests.test_ranking import plain_task

NOBODY = np.float32(-np.inf)


def counted(scores: np.ndarray, floor: float = -np.inf) -> Histogram:
    histogram = Histogram.empty(floor)
    histogram.count(scores.astype(np.float32))
    histogram.total = len(scores)
    return histogram


def slow_threshold(wrong: np.ndarray, rate: float) -> float:
    """The lowest of all bin edges that no more than this share of the wrong scores reaches."""
    ordered = np.sort(wrong.astype(np.float32).astype(np.float64))
    for number in range(BINS):
        at_or_above = len(ordered) - np.searchsorted(ordered, 2 * number / BINS - 1)
        if at_or_above <= rate * len(ordered):
            return 2 * number / BINS - 1
    return 1 + 2 / BINS


@pytest.mark.parametrize("floor", [-np.inf, 0.0])
@pytest.mark.parametrize("seed", range(3))
def test_rates_are_those_of_all_scores_sorted(seed, floor):
    rng = np.random.default_rng(seed)
    wrong = np.clip(0.25 * rng.standard_normal(40_000), -1, 1).astype(np.float32)
    wrong[:200] = edge(rng.integers(50_000, BINS, 200))  # on an edge, and so in the bin above it
    right = np.clip(0.6 + 0.3 * rng.standard_normal(3000), -1, 1)
    found = true_rates(right, counted(wrong, floor))
    assert set(found["at"]) == {"1e-04", "1e-03", "1e-02"}
    for name, point in found["at"].items():
        threshold = slow_threshold(wrong, float(name))
        assert point["threshold"] == threshold
        assert point["false_alarm_rate"] == np.mean(wrong.astype(np.float64) >= threshold)
        assert point["false_alarm_rate"] <= float(name)
        assert point["true_rate"] == pytest.approx(np.mean(right >= threshold), abs=1e-12)
    assert found["pairs"] == {"right": 3000, "wrong": 40_000}


def test_a_right_score_on_the_threshold_is_found():
    wrong = np.linspace(-1, 0.5, 1000)
    threshold = slow_threshold(wrong, 0.01)
    right = np.array([threshold, np.nextafter(threshold, -1), 0.9, -0.9])
    assert true_rates(right, counted(wrong))["at"]["1e-02"]["true_rate"] == 0.5


def test_wrong_scores_of_one_leave_no_threshold():
    wrong = np.r_[np.ones(30), np.zeros(970)]
    found = true_rates(np.array([1.0, 1.0000001, 0.5]), counted(wrong))["at"]["1e-02"]
    assert found == {"threshold": 1 + 2 / BINS, "false_alarm_rate": 0, "true_rate": 0}


def test_the_curve_rises_and_lies_on_the_rates():
    rng = np.random.default_rng(5)
    wrong, right = rng.uniform(-1, 0.5, 5000), rng.uniform(0, 1, 400)
    curve = true_rates(right, counted(wrong))["curve"]
    for alarms, found in curve:
        threshold = np.quantile(wrong, 1 - alarms, method="higher") if alarms else wrong.max()
        assert found == pytest.approx(np.mean(right >= threshold), abs=0.01)
    assert np.all(np.diff(curve, axis=0) >= 0)
    assert curve[-1] == [1.0, 1.0]
    assert curve[0][0] <= 1 / 5000


def test_a_rate_of_less_than_one_pair_is_not_told():
    right = np.array([0.9, 0.1])
    assert set(true_rates(right, counted(np.linspace(-1, 1, 100)))["at"]) == {"1e-02"}
    assert set(true_rates(right, counted(np.linspace(-1, 1, 99)))["at"]) == set()
    nobody = true_rates(right, counted(np.empty(0)))
    assert nobody["at"] == {}
    assert nobody["pairs"] == {"right": 2, "wrong": 0}


def test_the_histogram_keeps_every_score_and_those_from_the_floor_on():
    scores = np.array([-1.0, -0.99999, 0.0, -1e-7, 0.5, 1.0, 1.0000001])
    assert bin_of(scores.astype(np.float32)).tolist() == [
        0, 0, BINS // 2, BINS // 2 - 1, 3 * BINS // 4, BINS - 1, BINS - 1,
    ]  # fmt: skip
    assert counted(scores).at_or_above()[0] == len(scores)
    assert counted(scores, 0.0).at_or_above()[0] == 4
    assert counted(scores, 0.0).at_or_above()[3 * BINS // 4] == 3
    both = counted(scores)
    both.add(counted(scores))
    assert both.total == 14
    assert np.array_equal(both.bins, 2 * counted(scores).bins)


def test_the_floor_lies_under_half_again_the_highest_rate():
    scores = np.random.default_rng(0).uniform(-1, 1, 200_000)
    sample = counted(scores)
    assert floor_of_sample(sample, SMALL) == -np.inf
    floor = floor_of_sample(sample, SMALL + 1)
    assert np.mean(scores >= floor) >= 1.5 * HIGHEST_RATE
    assert np.mean(scores >= floor + 2 / BINS) < 1.5 * HIGHEST_RATE
    assert counted(scores, floor).reaches_down()
    assert not counted(scores, 0.99).reaches_down()
    assert counted(scores).reaches_down()
    assert Histogram.empty().reaches_down()


def test_a_sample_that_misleads_is_made_good(monkeypatch):
    """Only the rows that are sampled are close to the queries: the floor is far too high."""
    monkeypatch.setattr("pipelines.retrieval.scores.SMALL", 1000)
    rng = np.random.default_rng(2)
    base = rng.standard_normal(32)
    gallery = rng.standard_normal((4096, 32))
    for begin in range(0, 4096, 512):
        gallery[begin : begin + 2] = base + 0.1 * rng.standard_normal((2, 32))
    queries = base + 0.1 * rng.standard_normal((24, 32))
    task = plain_task(queries, gallery, [[100 + q] for q in range(24)])
    monkeypatch.setattr(
        "pipelines.retrieval.ranking._groups",
        lambda total, groups, size: [(low, min(low + 2, total)) for low in range(0, total, 512)],
    )
    score_P, sample = score_pairs(task)
    floor = floor_of_sample(sample, 24 * 4096)
    assert not count_ranks(task, score_P, floor=floor).wrong.reaches_down()
    _, found = rank_all(task)
    everything = count_ranks(task, score_P)
    assert found.wrong.floor == -np.inf
    assert np.array_equal(found.wrong.bins, everything.wrong.bins)
    assert np.array_equal(found.best_wrong, everything.best_wrong)
    assert np.array_equal(found.before, everything.before)


def test_a_floor_is_used_where_there_are_many_scores(monkeypatch):
    monkeypatch.setattr("pipelines.retrieval.scores.SMALL", 1000)
    rng = np.random.default_rng(3)
    task = plain_task(
        rng.standard_normal((40, 16)), rng.standard_normal((3000, 16)), [[q] for q in range(40)]
    )
    score_P, floored = rank_all(task)
    whole = count_ranks(task, score_P)
    assert floored.wrong.floor > -1
    assert floored.wrong.bins.sum() < whole.wrong.bins.sum() / 10
    rates = [true_rates(score_P, ranking.wrong) for ranking in (floored, whole)]
    assert rates[0]["at"] == rates[1]["at"]
    assert set(rates[0]["at"]) == {"1e-04", "1e-03", "1e-02"}


def test_a_threshold_by_hand():
    wrong = np.array([0.5, 0.9, 0.1, *[0.0] * 197], dtype=np.float32)  # 200 queries: 2 may pass
    right = np.array([0.8, 0.95, 0.1, 0.05, *[0.7] * 196])
    first = right > wrong
    found = suggest_threshold(right, wrong, first)
    assert found["threshold"] == np.nextafter(np.float32(0.1), np.float32(1))
    assert found["false_alarm_rate"] == 2 / 200
    assert found["detection_rate"] == 198 / 200  # 0.1 is not above, 0.05 neither
    outrun = first.copy()
    outrun[0] = False
    assert suggest_threshold(right, wrong, outrun)["detection_rate"] == 197 / 200


@pytest.mark.parametrize("queries", [1, 99, 100, 101, 250])
def test_no_lower_threshold_would_do(queries):
    rng = np.random.default_rng(queries)
    wrong = rng.uniform(0, 1, queries).astype(np.float32)
    right = rng.uniform(0, 1, queries)
    found = suggest_threshold(right, wrong, right > wrong)
    alarms = np.mean(wrong >= np.float32(found["threshold"]))
    assert found["false_alarm_rate"] == alarms <= 0.01
    below = np.nextafter(np.float32(found["threshold"]), NOBODY)
    assert np.mean(wrong >= below) > 0.01 or alarms == int(0.01 * queries) / queries
    assert found["detection_rate"] == np.mean((right >= found["threshold"]) & (right > wrong))


def test_queries_that_meet_nobody_ask_for_no_threshold():
    right = np.full(300, 0.5)
    nobody = np.full(300, NOBODY)
    assert suggest_threshold(right, nobody, nobody < right) is None
    few = nobody.copy()
    few[:3] = 0.4
    assert suggest_threshold(right, few, few < right) is None
    few[3] = 0.3
    assert suggest_threshold(right, few, few < right)["threshold"] == pytest.approx(0.3)


def test_a_collapsed_network_finds_nobody_in_an_open_set():
    """A right and a wrong score of the same vectors differ by the rounding of their products."""
    for first in (1.0, 30.0, 1000.0):
        vectors = np.tile(np.r_[first, np.ones(767)], (300, 1))
        task = plain_task(vectors[:100], vectors[100:], [[q] for q in range(100)])
        score_P, ranking = rank_all(task)
        found = suggest_threshold(score_P, ranking.best_wrong, ranking.before == 0)
        assert found["detection_rate"] == 0


def test_a_gallery_of_right_answers_alone():
    vectors = np.eye(4, dtype=np.float32)
    none = np.empty(0, dtype=np.int64)
    task = Task(
        scorer=Cosine(vectors[:2]),
        gallery=HeldVectors(vectors[:3]),
        good=Pairs.of(np.repeat([0, 1], 3), np.tile([0, 1, 2], 2), queries=2),
        removed=Pairs.of(none, none, queries=2),
    )
    score_P, ranking = rank_all(task)
    assert ranking.before.tolist() == [0] * 6
    assert ranking.wrong.total == 0
    assert ranking.best_wrong.tolist() == [-np.inf] * 2
    assert true_rates(score_P, ranking.wrong)["at"] == {}
    part = replace(task, gallery=task.gallery.part(1, 2))
    assert score_pairs(part)[0].tolist() == [0, 0, 0, 0, 1, 0]
