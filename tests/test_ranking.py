"""Ranks and protocols against a slow reference that sorts the whole gallery for every query."""

import numpy as np
import pyarrow as pa
import pytest

from pipelines.errors import UserError
from pipelines.retrieval.evaluation import prepare
from pipelines.retrieval.protocol import relevance
from pipelines.retrieval.ranking import rank_matches, top_matches
from tests.embedding_files import embedding_set, embedding_table, random_table, sign_vectors


def reference(table: pa.Table, protocol: str) -> dict[str, list[tuple[str, bool]]]:
    """For each query key the whole gallery in order, without what the protocol removes, as (key,
    right answer); straight from the rules, one pair at a time."""
    rows = table.drop_columns("embedding").to_pylist()
    raw = np.stack(table["embedding"].to_numpy(zero_copy_only=False)).astype(np.float64)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    result = {}
    for i, query in enumerate(rows):
        if query["split"] != "query":
            continue
        kept = []
        for j, row in enumerate(rows):
            same = row["identity"] == query["identity"] and row["role"] != "distractor"
            same_camera = query["camera"] is not None and row["camera"] == query["camera"]
            if row["split"] != "gallery" or row["role"] == "junk" or row["key"] == query["key"]:
                continue
            if protocol == "market" and same and same_camera:
                continue
            kept.append((-unit[i] @ unit[j], j, row["key"], same))
        result[query["key"]] = [(key, same) for _, _, key, same in sorted(kept)]
    return result


@pytest.mark.parametrize("protocol", ["market", "any_camera"])
@pytest.mark.parametrize("seed", range(12))
def test_ranks_equal_the_reference(tmp_path, seed, protocol):
    table = random_table(seed)
    expected = reference(table, protocol)
    task = prepare(embedding_set(tmp_path, table), protocol=protocol)
    ranks = rank_matches(task.queries.vectors, task.gallery.vectors, task.relevance.judge)
    keys = task.queries.rows["key"].to_pylist()
    with_match = {key for key, order in expected.items() if any(right for _, right in order)}
    assert set(keys) == with_match
    for key, found in zip(keys, ranks, strict=True):
        assert found.tolist() == [i for i, (_, right) in enumerate(expected[key]) if right], key


def test_the_reference_data_has_ties_and_removed_rows(tmp_path):
    table = random_table(0)
    task = prepare(embedding_set(tmp_path, table))
    scores = task.queries.vectors @ task.gallery.vectors.T
    assert any(len(np.unique(row)) < len(row) for row in scores)
    assert any(len(task.relevance.judge(q).removed) > 1 for q in range(len(task.queries)))
    assert task.junk_removed > 0


@pytest.mark.parametrize("memory_mb", [0, 1])
def test_the_band_does_not_change_the_ranks(tmp_path, memory_mb):
    task = prepare(embedding_set(tmp_path, random_table(3, queries=300, gallery=900)))
    arguments = (task.queries.vectors, task.gallery.vectors, task.relevance.judge)
    banded, whole = rank_matches(*arguments, memory_mb=memory_mb), rank_matches(*arguments)
    assert all(np.array_equal(a, b) for a, b in zip(banded, whole, strict=True))


@pytest.mark.parametrize("protocol", ["market", "any_camera"])
def test_top_matches_begin_like_the_reference(tmp_path, protocol):
    table = random_table(5)
    expected = reference(table, protocol)
    task = prepare(embedding_set(tmp_path, table), protocol=protocol)
    chosen = [3, 0, 17]
    found = top_matches(
        task.queries.vectors, task.gallery.vectors, task.relevance.judge, chosen, top_k=25
    )
    for query, (positions, scores) in zip(chosen, found, strict=True):
        key = task.queries.rows["key"][query].as_py()
        keys = task.gallery.rows["key"].take(positions).to_pylist()
        assert keys == [key for key, _ in expected[key][:25]]
        assert np.all(np.diff(scores) <= 0)


def rows_of(*rows: tuple[str, str | None, str | None, str]) -> pa.Table:
    names = ("key", "identity", "camera", "role")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    return pa.table(columns, schema=pa.schema([(name, pa.string()) for name in names]))


def test_market_takes_out_the_own_camera_and_keeps_distractors():
    gallery = rows_of(
        ("a", "x", "1", "normal"),
        ("b", "x", "2", "normal"),
        ("c", "x", None, "normal"),
        ("d", "y", "1", "normal"),
        ("e", "x", "3", "distractor"),
        ("q", "x", "2", "normal"),
    )
    queries = rows_of(("q", "x", "1", "normal"), ("r", "x", None, "normal"))
    market = relevance(queries, gallery, protocol="market")
    assert market.judge(0).good.tolist() == [1, 2]
    assert market.judge(0).removed.tolist() == [0, 5]
    # an unknown camera equals no camera, not even another unknown one
    assert market.judge(1).good.tolist() == [0, 1, 2, 5]
    assert market.judge(1).removed.tolist() == []
    anywhere = relevance(queries, gallery, protocol="any_camera")
    assert anywhere.judge(0).good.tolist() == [0, 1, 2]
    assert anywhere.judge(0).removed.tolist() == [5]


def test_an_image_never_finds_itself_under_another_identity():
    queries = rows_of(("q", "x", "1", "normal"))
    gallery = rows_of(("q", "y", "2", "normal"), ("a", "x", "2", "normal"))
    judged = relevance(queries, gallery, protocol="market").judge(0)
    assert judged.good.tolist() == [1]
    assert judged.removed.tolist() == [0]


def test_an_unknown_protocol_is_refused():
    rows = rows_of(("a", "x", "1", "normal"))
    with pytest.raises(UserError, match=r"evaluate\.protocol=duke .*market or any_camera"):
        relevance(rows, rows, protocol="duke")


def test_equal_vectors_keep_the_gallery_order(tmp_path):
    vectors = np.repeat(sign_vectors(np.random.default_rng(0), 1), 5, axis=0)
    table = embedding_table(
        vectors,
        identity=["x", "y", "x", "y", "x"],
        camera=["1", "2", "2", "2", "2"],
        split=["query", "gallery", "gallery", "gallery", "gallery"],
    )
    task = prepare(embedding_set(tmp_path, table))
    ranks = rank_matches(task.queries.vectors, task.gallery.vectors, task.relevance.judge)
    assert ranks[0].tolist() == [1, 3]
