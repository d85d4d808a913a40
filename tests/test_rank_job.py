"""The gallery dealt out to Ray tasks: the same figures as in one process."""

from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.rank_job import RankJob, split_source
from pipelines.retrieval import (
    Expansion,
    Rerank,
    Settings,
    chosen_parts,
    evaluate,
    load_embeddings,
    open_embeddings,
)
from pipelines.retrieval.metrics import SortedRanks
from pipelines.retrieval.ranking import rank_all
from pipelines.retrieval.vectors import HeldVectors
from tests.embedding_files import random_table
from tests.test_ranking import plain_task, random_task

SPLITS = ("query", "gallery")
FIGURES = ("metrics", "cmc", "intervals", "spread", "by_camera", "by_domain", "protocol", "lists")


@pytest.mark.parametrize(("rows", "count"), [(10, 1), (10, 3), (3, 5), (1, 4), (515_913, 7)])
def test_every_row_is_dealt_once(rows, count):
    parts = list(split_source(HeldVectors(np.zeros((rows, 1), dtype=np.float32)), count))
    assert len(parts) == min(rows, count)
    ends = [(part.first, part.first + len(part)) for part in parts]
    assert ends[0][0] == 0
    assert ends[-1][1] == rows
    assert all(one[1] == two[0] for one, two in pairwise(ends))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_counts_are_those_of_one_process(ray_session, workers):
    for seed in range(2):
        task = random_task(seed)
        score_P, whole = rank_all(task)
        found_P, found = RankJob(workers)(task)
        assert np.array_equal(found_P, score_P)
        assert np.array_equal(found.before, whole.before)
        assert np.array_equal(found.camera_before, whole.camera_before)
        assert found.wrong.total == whole.wrong.total
        assert found.wrong.bins.sum() == whole.wrong.bins.sum()
        assert np.allclose(found.best_wrong, whole.best_wrong, rtol=0, atol=1e-6)


@pytest.mark.ray
@pytest.mark.parametrize("hold_mb", [0, 100])
@pytest.mark.parametrize(
    "how",
    [
        Settings(resamples=30),
        Settings(resamples=30, parts=("0:40",)),
        Settings(resamples=30, expansion=Expansion(k=3)),
        Settings(resamples=30, protocol="vehicleid", draws=2),
        Settings(resamples=30, rerank=Rerank(k1=6, k2=2)),
    ],
    ids=["market", "parts", "expansion", "vehicleid", "rerank"],
)
def test_figures_are_those_of_one_process(ray_session, tmp_path, how, hold_mb):
    if how.rerank and not hold_mb:
        pytest.skip("re-ranking needs its gallery in memory")
    path = tmp_path / "embeddings.parquet"
    pq.write_table(random_table(3, gallery=400), path, row_group_size=70)
    expected = evaluate(chosen_parts(load_embeddings(path), how), how)
    for workers in (1, 2, 5):
        stored = open_embeddings(path, splits=SPLITS, hold_mb=hold_mb)
        found = evaluate(chosen_parts(stored, how), how, rank=RankJob(workers))
        for name in FIGURES:
            assert getattr(found, name) == getattr(expected, name), name
        assert found.per_query.equals(expected.per_query)
        told, known = found.verification, expected.verification
        assert told["pairs"] == known["pairs"]
        for rate, point in told["at"].items():  # a float32 score may cross the edge of a bin
            assert point["true_rate"] == pytest.approx(known["at"][rate]["true_rate"], abs=0.02)
        assert told["open_set"] == pytest.approx(known["open_set"], abs=1e-6)


@pytest.mark.ray
def test_more_tasks_than_rows(ray_session):
    vectors = np.eye(3, dtype=np.float32)
    task = plain_task(vectors[:2], vectors, [[0], [2]])
    score_P, ranking = RankJob(9)(task)
    assert score_P.tolist() == [1, 0]
    assert ranking.before.tolist() == [0, 2]


@pytest.mark.ray
def test_a_floor_of_all_parts_together(ray_session):
    """Enough scores for a floor (10 million), with the close rows all in one part."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(8)
    gallery = rng.standard_normal((50_500, 8))
    gallery[:2000] += 3 * base
    queries = base + 0.5 * rng.standard_normal((200, 8))
    good = [[2 * q, 40_000 + q] for q in range(200)]
    task = plain_task(queries, gallery, good)
    score_P, whole = rank_all(task)
    found_P, found = RankJob(3)(task)
    assert found.wrong.floor > -np.inf
    assert found.wrong.reaches_down()
    assert np.array_equal(found_P, score_P)
    assert np.array_equal(found.before, whole.before)
    ranks = [SortedRanks.of(task.good, score_P, one.before).rank for one in (found, whole)]
    assert np.array_equal(*ranks)
    assert found.wrong.total == whole.wrong.total == 200 * 50_500 - 400
