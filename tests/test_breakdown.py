"""Figures by domain and camera, their intervals, and what is told where something is missing."""

import math

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import UserError
from pipelines.retrieval import Settings, evaluate
from pipelines.retrieval.bootstrap import intervals
from tests.embedding_files import embedding_set, embedding_table, random_table, sign_vectors
from tests.slow_evaluation import own, pool_of, right, slow_figures, slow_lists

PLAIN = Settings(resamples=0)


# by domain and by camera


def test_figures_of_a_domain_are_those_of_its_queries_on_the_whole_gallery(tmp_path):
    table = random_table(3)
    domain = ["one", "two", None] * 70
    table = table.append_column("domain", pa.array(domain[: len(table)]))
    embeddings = embedding_set(tmp_path, table)
    found = evaluate(embeddings, PLAIN)
    key_of = dict(zip(table["key"].to_pylist()[:40], domain, strict=False))
    per_query = found.per_query.to_pylist()
    assert set(found.by_domain) == {"one", "two", "unknown"}
    for name, figures in found.by_domain.items():
        ap = [q["ap"] for q in per_query if (key_of[q["key"]] or "unknown") == name]
        assert figures["queries"] == len(ap)
        assert figures["mAP"] == pytest.approx(100 * np.mean(ap))
        assert set(figures) == {"queries", *found.metrics}
    assert sum(f["queries"] for f in found.by_domain.values()) == len(per_query)
    assert evaluate(embedding_set(tmp_path, random_table(3)), PLAIN).by_domain == {}


@pytest.mark.parametrize("protocol", ["market", "any_camera"])
@pytest.mark.parametrize("seed", range(3))
def test_a_camera_pair_is_a_gallery_of_that_camera_alone(tmp_path, seed, protocol):
    embeddings = embedding_set(tmp_path, random_table(seed))
    rows = embeddings.rows.to_pylist()

    def out(query: dict, row: dict) -> bool:
        known = query["camera"] is not None and query["camera"] == row["camera"]
        return own(query, row) or (protocol == "market" and known and right(query, row))

    expected = {}
    gallery = pool_of(
        embeddings, lambda row, _: row["split"] == "gallery" and row["role"] != "junk"
    )
    for asked in (None, "c1", "c2", "c3"):
        for answered in (None, "c1", "c2", "c3"):
            lists = slow_lists(
                embeddings,
                [i for i in range(40) if rows[i]["camera"] == asked],
                [j for j in gallery if rows[j]["camera"] == answered],
                good=right,
                out=out,
            )
            if lists:
                figures = slow_figures(lists.values())
                pair = (asked or "unknown", answered or "unknown")
                expected[pair] = (len(lists), figures["mAP"], figures["R1"])
    found = evaluate(embeddings, Settings(protocol=protocol, resamples=0)).by_camera
    assert [(p["query_camera"], p["gallery_camera"]) for p in found] == [
        (q, g) for q in ("c1", "c2", "c3", "unknown") for g in ("c1", "c2", "c3", "unknown")
        if (q, g) in expected
    ]  # fmt: skip
    for pair in found:
        queries, mean, first = expected.pop((pair["query_camera"], pair["gallery_camera"]))
        assert pair["queries"] == queries
        assert (pair["mAP"], pair["R1"]) == pytest.approx((mean, first))
    assert expected == {}


def test_cameras_stand_in_the_order_of_their_numbers_and_only_if_asked_for(tmp_path):
    camera = ["10", "2", "10", "2", "1"]
    table = embedding_table(
        sign_vectors(np.random.default_rng(0), 5),
        identity=["x"] * 5,
        camera=camera,
        split=["query"] * 2 + ["gallery"] * 3,
    )
    embeddings = embedding_set(tmp_path, table)
    pairs = [(p["query_camera"], p["gallery_camera"]) for p in evaluate(embeddings).by_camera]
    assert pairs == [("2", "1"), ("2", "10"), ("10", "1"), ("10", "2")]
    assert evaluate(embeddings, Settings(by_camera=False)).by_camera == []


# intervals


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        values = rng.exponential(0.3, (1, 150))
        low, high = intervals(values, resamples=200, seed=trial)[0]
        inside += low <= 0.3 <= high
    assert 0.90 <= inside / 300 <= 0.98


def test_intervals_shrink_with_the_root_of_the_queries():
    rng = np.random.default_rng(1)
    few, many = (
        intervals(rng.uniform(0, 1, (2, size)), resamples=1000, seed=0) for size in (100, 10_000)
    )
    width = [float(np.diff(ends)[0, 0]) for ends in (few, many)]
    assert width[0] / width[1] == pytest.approx(10, rel=0.25)
    expected = 2 * 1.96 * math.sqrt(1 / 12 / 10_000)
    assert width[1] == pytest.approx(expected, rel=0.1)


def test_intervals_are_seeded_and_hold_the_figures(tmp_path):
    embeddings = embedding_set(tmp_path, random_table(2))
    found, again, other = (
        evaluate(embeddings, Settings(resamples=130, seed=seed)) for seed in (0, 0, 1)
    )
    assert found.intervals == again.intervals != other.intervals
    assert found.metrics == other.metrics
    assert set(found.intervals) == set(found.metrics)
    for name, (low, high) in found.intervals.items():
        assert 0 <= low <= found.metrics[name] <= high <= 100
    assert evaluate(embeddings, PLAIN).intervals == {}


def test_resamples_draw_the_same_queries_for_all_figures():
    values = np.random.default_rng(0).uniform(0, 1, 80)
    ends = intervals(np.stack([values, 2 * values, values]), resamples=70, seed=5)
    assert np.allclose(ends[1], 2 * ends[0])
    assert np.array_equal(ends[2], ends[0])
    rng = np.random.default_rng(5)
    means = [values[rng.integers(0, 80, 80)].mean() for _ in range(70)]
    assert np.allclose(ends[0], np.percentile(means, (2.5, 97.5)))


# what is missing


def test_no_cameras_at_all_leave_nothing_out(tmp_path):
    table = random_table(6)
    bare = table.drop_columns("camera")
    market, anywhere = (
        evaluate(embedding_set(tmp_path, bare), Settings(protocol=name, resamples=0))
        for name in ("market", "any_camera")
    )
    assert market.metrics == anywhere.metrics
    assert market.by_camera == []
    nulls = bare.append_column("camera", pa.nulls(len(bare), pa.string()))
    assert evaluate(embedding_set(tmp_path, nulls), PLAIN).metrics == market.metrics


@pytest.mark.parametrize("protocol", ["market", "any_camera", "university", "latf_legacy"])
@pytest.mark.parametrize(("split", "missing"), [("query", "gallery"), ("gallery", "query")])
def test_an_empty_split_is_named(tmp_path, protocol, split, missing):
    table = embedding_table(np.eye(3, dtype=np.float32), identity=["x"] * 3, split=split)
    with pytest.raises(UserError, match=rf"no rows with split='{missing}' \(splits there: {split}"):
        evaluate(embedding_set(tmp_path, table), Settings(protocol=protocol))


def test_a_gallery_of_junk_is_named(tmp_path):
    table = embedding_table(
        np.eye(3, dtype=np.float32),
        identity=["x"] * 3,
        split=["query", "gallery", "gallery"],
        role=["normal", "junk", "junk"],
    )
    with pytest.raises(UserError, match=r"all 2 images of the gallery are marked junk"):
        evaluate(embedding_set(tmp_path, table))


def test_nobody_has_an_identity(tmp_path):
    table = embedding_table(
        np.eye(3, dtype=np.float32),
        identity=pa.nulls(3, pa.string()).to_pylist(),
        split=["query", "gallery", "gallery"],
    )
    with pytest.raises(UserError, match=r"1 queries have no identity: label them"):
        evaluate(embedding_set(tmp_path, table))


def test_one_query_and_one_row(tmp_path):
    table = embedding_table(
        np.eye(2, dtype=np.float32), identity=["x", "x"], split=["query", "gallery"]
    )
    found = evaluate(embedding_set(tmp_path, table), Settings(resamples=10))
    assert set(found.metrics.values()) == {100.0}
    assert found.cmc == (100.0,) * 50
    assert set(map(tuple, found.intervals.values())) == {(100.0, 100.0)}
    assert found.verification["open_set"] is None
    assert found.verification["pairs"] == {"right": 1, "wrong": 0}
    assert [len(one.hits) for one in found.lists] == [1]


def test_a_query_without_a_right_answer_does_not_count_as_zero(tmp_path):
    vectors = np.array([[1, 0], [0, 1], [1, 0], [1, 0.1]], dtype=np.float32)
    table = embedding_table(
        vectors, identity=["x", "lost", "x", "y"], split=["query"] * 2 + ["gallery"] * 2
    )
    found = evaluate(embedding_set(tmp_path, table), PLAIN)
    assert found.metrics["mAP"] == found.metrics["R1"] == 100
    assert found.protocol["queries_used"] == 1
    assert found.protocol["queries_dropped"] == {"identity_not_in_gallery": 1}
