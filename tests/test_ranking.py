"""Ranks against a slow reference that sorts the whole gallery for every query."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from pipelines.retrieval import EmbeddingSet, Rerank, Settings, settings_of
from pipelines.retrieval.exact_scores import exact_near, exact_pairs
from pipelines.retrieval.metrics import SortedRanks
from pipelines.retrieval.pairs import Pairs, expand
from pipelines.retrieval.ranked_lists import top_rows
from pipelines.retrieval.ranking import Ranking, Task, count_ranks, rank_all, score_pairs
from pipelines.retrieval.rounding import SAME
from pipelines.retrieval.scorers import Cosine
from pipelines.retrieval.tile_counts import NEAR
from pipelines.retrieval.vectors import HeldVectors
from tests.embedding_files import embedding_set, embedding_table, random_table, sign_vectors
from tests.slow_ranking import ordered_lists

RULES = ["market", "any_camera", "latf_legacy"]


def task_of(embeddings: EmbeddingSet, protocol: str = "market", **options) -> tuple[Task, pa.Table]:
    how = Settings(protocol=protocol, **options)
    (setting,) = settings_of(embeddings.rows, how)
    return setting.task(embeddings, how), setting.queries


def ranks_of(task: Task, **options) -> list[np.ndarray]:
    score_P, ranking = rank_all(task, **options)
    ranks = SortedRanks.of(task.good, score_P, ranking.before)
    return np.split(ranks.rank, ranks.start[1:-1])


@pytest.mark.parametrize("protocol", RULES)
@pytest.mark.parametrize("seed", range(12))
def test_ranks_equal_the_reference(tmp_path, seed, protocol):
    table = random_table(seed)
    expected = ordered_lists(table, protocol)
    task, queries = task_of(embedding_set(tmp_path, table), protocol)
    keys = queries["key"].to_pylist()
    assert set(keys) == {k for k, order in expected.items() if any(right for _, right in order)}
    for key, found in zip(keys, ranks_of(task), strict=True):
        assert found.tolist() == [i for i, (_, right) in enumerate(expected[key]) if right], key


def test_the_reference_data_has_ties_and_removed_rows(tmp_path):
    task, _ = task_of(embedding_set(tmp_path, random_table(0)))
    scores = task.scorer.queries @ task.gallery.vectors.T
    assert any(len(np.unique(row)) < len(row) for row in scores)
    assert task.removed.counts.max() > 1


def random_task(seed: int, *, queries: int = 70, gallery: int = 900, dim: int = 33) -> Task:
    """Vectors whose scores are rounded; close copies whose order float32 cannot tell."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((queries + gallery, dim)).astype(np.float32)
    copied = queries + rng.integers(0, 300, gallery - 300)
    vectors[queries + 300 :] = vectors[copied] + 1e-7 * vectors[queries + 300 :]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    identity = rng.integers(0, 40, queries + gallery)
    identity[queries : queries + 40] = np.arange(40)
    order = np.argsort(identity[queries:], kind="stable")
    found = identity[queries:][order]
    query_P, place_P = expand(
        np.searchsorted(found, identity[:queries], "left"),
        np.searchsorted(found, identity[:queries], "right"),
    )
    out = rng.random(len(query_P)) < 0.1
    pairs = [Pairs.of(query_P[keep], order[place_P[keep]], queries=queries) for keep in (~out, out)]
    used = pairs[0].counts > 0
    assert used.all()
    return Task(
        scorer=Cosine(vectors[:queries]),
        gallery=HeldVectors(vectors[queries:]),
        good=pairs[0],
        removed=pairs[1],
        camera=rng.integers(-1, 4, gallery),
    )


def slow_before(task: Task, *, same_camera: bool) -> list[int]:
    """Wrong rows before each right answer, by float64 scores, one pair at a time; scores that
    differ by less than a float64 product's rounding are equal."""
    scores = task.scorer.queries.astype(np.float64) @ task.gallery.vectors.T.astype(np.float64)
    counts = []
    for query, row in zip(task.good.query, task.good.row, strict=True):
        wrong = np.ones(scores.shape[1], dtype=bool)
        wrong[task.good.rows_of(query)] = False
        wrong[task.removed.rows_of(query)] = False
        if same_camera:
            wrong &= task.camera == task.camera[row]
        counts.append(int((scores[query, wrong] >= scores[query, row] - SAME).sum()))
    return counts


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_exact_scores(seed):
    task = random_task(seed)
    score_P, ranking = rank_all(task)
    assert ranking.before.tolist() == slow_before(task, same_camera=False)
    assert ranking.camera_before.tolist() == slow_before(task, same_camera=True)
    exact = task.scorer.queries.astype(np.float64) @ task.gallery.vectors.T.astype(np.float64)
    assert np.allclose(score_P, exact[task.good.query, task.good.row], atol=1e-14)


@pytest.mark.parametrize(("memory_mb", "queries", "gallery"), [(0, 45, 350), (1, 300, 5000)])
def test_the_tile_does_not_change_the_counts(memory_mb, queries, gallery):
    task = random_task(9, queries=queries, gallery=gallery)
    (score_P, whole), (other_P, tiled) = rank_all(task), rank_all(task, memory_mb=memory_mb)
    assert np.array_equal(score_P, other_P)
    assert np.array_equal(whole.before, tiled.before)
    assert np.array_equal(whole.camera_before, tiled.camera_before)
    assert np.array_equal(whole.best_wrong, tiled.best_wrong) or np.allclose(
        whole.best_wrong, tiled.best_wrong, atol=1e-6
    )
    assert whole.wrong.total == tiled.wrong.total


def test_counts_of_parts_of_a_gallery_add_up():
    task = random_task(5)
    score_P, whole = rank_all(task)
    cuts = [0, 1, 333, 334, 900]
    parts = [
        Task(**{**vars(task), "gallery": task.gallery.part(low, high)})
        for low, high in pairwise(cuts)
    ]
    assert np.array_equal(sum(score_pairs(part)[0] for part in parts), score_P)
    total = count_ranks(parts[0], score_P)
    for part in parts[1:]:
        total.add(count_ranks(part, score_P))
    assert np.array_equal(total.before, whole.before)
    assert np.array_equal(total.camera_before, whole.camera_before)
    assert np.allclose(total.best_wrong, whole.best_wrong, atol=1e-6)
    assert total.wrong.total == whole.wrong.total


def test_a_floor_changes_no_rank_and_keeps_the_high_scores():
    task = random_task(6)
    score_P, whole = rank_all(task)
    floored = count_ranks(task, score_P, floor=0.2)
    assert np.array_equal(floored.before, whole.before)
    assert floored.wrong.total == whole.wrong.total
    high = slice(int(len(whole.wrong.bins) * 0.6) + 1, None)  # from a score of 0.2 on
    assert np.array_equal(floored.wrong.bins[high], whole.wrong.bins[high])
    assert floored.wrong.bins.sum() < whole.wrong.bins.sum()


@pytest.mark.parametrize("count", [5, 300])
def test_of_equal_vectors_the_wrong_ones_come_first(tmp_path, count):
    vectors = np.repeat(sign_vectors(np.random.default_rng(0), 1), 2 * count + 1, axis=0)
    table = embedding_table(
        vectors,
        identity=["x"] + ["x", "y"] * count,
        camera=["1"] + ["2"] * 2 * count,
        split=["query"] + ["gallery"] * 2 * count,
    )
    task, _ = task_of(embedding_set(tmp_path, table))
    assert ranks_of(task)[0].tolist() == list(range(count, 2 * count))
    assert rank_all(task)[1].camera_before.tolist() == [count] * count


def plain_task(
    queries_QD: np.ndarray, gallery_GD: np.ndarray, good: list[list[int]], **options
) -> Task:
    """Of vectors of any length; nothing is removed."""
    queries_QD, gallery_GD = (
        (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)
        for v in (queries_QD, gallery_GD)
    )
    query_P = np.repeat(np.arange(len(good)), [len(rows) for rows in good])
    none = np.empty(0, dtype=np.int64)
    return Task(
        scorer=Cosine(queries_QD),
        gallery=HeldVectors(gallery_GD),
        good=Pairs.of(query_P, np.concatenate(good).astype(np.int64), queries=len(good)),
        removed=Pairs.of(none, none, queries=len(good)),
        **options,
    )


@pytest.mark.parametrize("dim", [64, 384, 512, 768, 2048, 3840])
@pytest.mark.parametrize("first", [1.0, 30.0, 1000.0])
def test_a_collapsed_network_gets_nothing_whatever_its_products_round_to(first, dim):
    """Where all products are alike their roundings do not cancel: 1 comes out as 1 - 8e-6."""
    vectors = np.tile(np.r_[first, np.ones(dim - 1)], (700, 1))
    task = plain_task(vectors[:130], vectors[130:], [[q, q + 200] for q in range(130)])
    error = task.scorer.queries[:1] @ task.gallery.vectors.T - np.float32(1)
    assert abs(error).max() < NEAR / 1.3
    assert rank_all(task)[1].before.tolist() == [568] * 260


def test_a_crowd_near_an_answer_is_told_apart_in_any_tile():
    """Half of 900 wrong rows are above the right answer, by less than float32 can tell."""
    dim, rng = 48, np.random.default_rng(4)
    base = rng.standard_normal(dim)
    noise = rng.standard_normal((940, dim))
    gallery = base + 3e-5 * noise
    queries = base + 0.3 * rng.standard_normal((20, dim))
    good = [[q, 20 + q, 500 + q] for q in range(20)]
    task = plain_task(queries, gallery, good, camera=rng.integers(-1, 3, 940))
    expected = slow_before(task, same_camera=False)
    assert min(expected) < 300 < 600 < max(expected)
    for memory_mb in (0, 64):
        ranking = rank_all(task, memory_mb=memory_mb)[1]
        assert ranking.before.tolist() == expected
        assert ranking.camera_before.tolist() == slow_before(task, same_camera=True)
    score_P, _ = score_pairs(task)
    total = Ranking.empty(task)
    for low, high in pairwise([0, 7, 130, 131, 940]):
        part = Task(**{**vars(task), "gallery": task.gallery.part(low, high)})
        total.add(count_ranks(part, score_P))
    assert total.before.tolist() == expected


def test_single_pairs_and_whole_products_are_the_same_scores():
    task = random_task(3)
    query_N, column_N = np.divmod(np.random.default_rng(0).permutation(70 * 900), 900)
    rows_WD = task.gallery.vectors
    whole = exact_near(task.scorer, (0, 70), query_N, column_N, 0, rows_WD)
    single = exact_pairs(task.scorer, query_N, column_N, 0, rows_WD)
    assert np.allclose(whole, single, rtol=0, atol=1e-14)
    few = exact_near(task.scorer, (0, 70), query_N[:99], column_N[:99], 0, rows_WD)
    assert np.array_equal(few, single[:99])


def test_re_ranked_scores_are_those_of_single_pairs_in_any_tile(tmp_path):
    how = {"rerank": Rerank(k1=6, k2=2), "by_camera": False}
    task, _ = task_of(embedding_set(tmp_path, random_table(8)), **how)
    rows_GD = task.gallery.vectors
    size = len(rows_GD)
    query_N, row_N = np.divmod(np.arange(task.queries * size), size)
    scores = task.scorer.pairs(query_N, row_N, rows_GD[row_N]).reshape(task.queries, size)
    assert np.allclose(task.scorer.exact_tile(3, 9, 20, rows_GD[20:50]), scores[3:9, 20:50])
    expected = []
    for query, row in zip(task.good.query, task.good.row, strict=True):
        wrong = np.ones(size, dtype=bool)
        wrong[task.good.rows_of(query)] = wrong[task.removed.rows_of(query)] = False
        expected.append(int((scores[query, wrong] >= scores[query, row] - 1e-12).sum()))
    for memory_mb in (0, 64):
        assert rank_all(task, memory_mb=memory_mb)[1].before.tolist() == expected


@pytest.mark.parametrize("protocol", ["market", "any_camera"])
def test_top_rows_begin_like_the_reference(tmp_path, protocol):
    rng = np.random.default_rng(3)
    table = random_table(5)
    vectors = rng.standard_normal((len(table), 16)).astype(np.float32)  # no two scores are equal
    table = embedding_table(
        vectors, **{name: table[name].to_pylist() for name in table.column_names[:-1]}
    )
    expected = ordered_lists(table, protocol)
    embeddings = embedding_set(tmp_path, table)
    task, queries = task_of(embeddings, protocol)
    chosen = [3, 0, 17]
    gallery = settings_of(embeddings.rows, Settings(protocol=protocol))[0].gallery
    found = top_rows(task, chosen, top_k=25)
    for query, (positions, scores) in zip(chosen, found, strict=True):
        key = queries["key"][query].as_py()
        keys = gallery["key"].take(positions).to_pylist()
        assert keys == [key for key, _ in expected[key][:25]]
        assert np.all(np.diff(scores) <= 0)
