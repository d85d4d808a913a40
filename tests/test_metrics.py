"""CMC, the two average precisions and mINP: by hand, against a slow reference, on real data."""

from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import UserError
from pipelines.retrieval import (
    Provenance,
    Rerank,
    Settings,
    describe_protocol,
    evaluate,
    load_embeddings,
    open_embeddings,
)
from pipelines.retrieval.metrics import (
    SortedRanks,
    average_precision_step,
    average_precision_top_ten,
    average_precision_trapezoid,
    cmc_curve,
    inverse_negative_penalty,
)
from tests.embedding_files import embedding_set, embedding_table, random_table, sign_vectors
from tests.slow_ranking import ordered_lists

YARDSTICK = {
    "mAP": 24.6401,
    "mAP_trapezoid": 23.5083,
    "mINP": 4.1883,
    "R1": 49.9703,
    "R5": 68.7945,
    "R10": 75.5048,
    "R20": 81.3539,
}
RERANKED = {
    "mAP": 35.9758,
    "mAP_trapezoid": 35.0726,
    "mINP": 12.2894,
    "R1": 55.4929,
    "R5": 66.8646,
    "R10": 72.2090,
    "R20": 77.5238,
}


def ranks(*lists: list[int]) -> SortedRanks:
    start = np.cumsum([0, *map(len, lists)])
    return SortedRanks(start, np.concatenate([np.array(one) for one in lists]))


def test_average_precision_by_hand():
    found = ranks([0, 2, 5], [3])
    assert average_precision_step(found) == pytest.approx([(1 / 1 + 2 / 3 + 3 / 6) / 3, 1 / 4])
    before, at = (1, 1 / 2, 2 / 5), (1, 2 / 3, 3 / 6)
    trapezoids = [(b + a) / 2 for b, a in zip(before, at, strict=True)]
    assert average_precision_trapezoid(found) == pytest.approx([sum(trapezoids) / 3, 1 / 8])


def test_a_single_answer_is_worth_half_under_the_trapezoid_unless_first():
    assert average_precision_step(ranks([3])) == 1 / 4
    assert average_precision_trapezoid(ranks([3])) == 1 / 8
    assert average_precision_step(ranks([0])) == average_precision_trapezoid(ranks([0])) == 1


def test_top_ten_precision_divides_by_what_it_found():
    found = average_precision_top_ten(ranks([0, 4, 9, 10, 50], [10], [9]))
    assert found == pytest.approx([(1 + 2 / 5 + 3 / 10) / 3, 0, 1 / 10])


def test_inverse_negative_penalty_looks_at_the_last_answer():
    assert inverse_negative_penalty(ranks([0, 1, 2], [0, 1, 11])).tolist() == [1, 3 / 12]


def test_cmc_counts_first_answers():
    curve = cmc_curve(np.array([0, 0, 2, 9]), 4)
    assert curve.tolist() == [0.5, 0.5, 0.75, 0.75]


@pytest.mark.parametrize("protocol", ["market", "any_camera"])
@pytest.mark.parametrize("seed", range(6))
def test_figures_equal_the_reference(tmp_path, seed, protocol):
    table = random_table(seed)
    lists = [
        np.array([right for _, right in order])
        for order in ordered_lists(table, protocol).values()
        if any(right for _, right in order)
    ]
    step, trapezoid, penalty = [], [], []
    for right in lists:
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        previous = [1.0, *precision[:-1]]
        hits = np.flatnonzero(right)
        step.append(np.mean([precision[i] for i in hits]))
        trapezoid.append(np.mean([(previous[i] + precision[i]) / 2 for i in hits]))
        penalty.append(right.sum() / (hits[-1] + 1))
    expected = {"mAP": step, "mAP_trapezoid": trapezoid, "mINP": penalty}
    expected |= {f"R{k}": [right[:k].any() for right in lists] for k in (1, 5, 10, 20)}
    found = evaluate(embedding_set(tmp_path, table), Settings(protocol=protocol))
    for name, values in expected.items():
        assert found.metrics[name] == pytest.approx(100 * np.mean(values), abs=1e-10), name
    assert found.protocol["queries_used"] == len(lists) == found.per_query.num_rows
    assert [found.cmc[k - 1] for k in (1, 5, 10, 20)] == [
        found.metrics[f"R{k}"] for k in (1, 5, 10, 20)
    ]


def test_dropped_queries_are_counted_by_reason(tmp_path):
    rows = [
        ("used", "x", "1", "query", "normal"),
        ("alone", "z", "1", "query", "normal"),
        ("same-camera", "y", "1", "query", "normal"),
        ("unlabelled", None, "1", "query", "normal"),
        ("nobody", "x", "1", "query", "distractor"),
        ("twice", "w", None, "query", "normal"),
        ("twice", "w", None, "gallery", "normal"),
        ("g1", "x", "2", "gallery", "normal"),
        ("g2", "y", "1", "gallery", "normal"),
        ("g3", "v", "2", "gallery", "distractor"),
        ("g4", "v", "2", "gallery", "junk"),
    ]
    key, identity, camera, split, role = zip(*rows, strict=True)
    vectors = sign_vectors(np.random.default_rng(1), len(rows))
    table = embedding_table(
        vectors, identity=identity, camera=camera, split=split, role=role, key=key
    )
    found = evaluate(embedding_set(tmp_path, table), provenance=Provenance(flip=True))
    assert found.per_query["key"].to_pylist() == ["used"]
    assert found.protocol["queries_dropped"] == {
        "identity_not_in_gallery": 1,
        "identity_unknown": 1,
        "not_a_normal_row": 1,
        "only_itself": 1,
        "only_same_camera": 1,
    }
    expected = {"queries_used": 1, "gallery_size": 4, "distractors": 1, "junk_removed": 1}
    assert {name: found.protocol[name] for name in expected} == expected
    line = describe_protocol(found.protocol)
    for words in ("market", "mAP by step AP", "mAP_trapezoid by trapezoid AP", "1 queries used"):
        assert words in line
    for words in ("5 dropped", "1 only same camera", "; flip;", "no re-ranking"):
        assert words in line


def two_sided(tmp_path: Path, *, query_ids: list[str], gallery_ids: list[str], cameras: list[str]):
    vectors = sign_vectors(np.random.default_rng(2), len(query_ids) + len(gallery_ids))
    split = ["query"] * len(query_ids) + ["gallery"] * len(gallery_ids)
    table = embedding_table(vectors, identity=query_ids + gallery_ids, camera=cameras, split=split)
    return embedding_set(tmp_path, table)


def test_one_camera_only_is_named_with_the_way_out(tmp_path):
    ids = ["x", "y"]
    one = two_sided(tmp_path, query_ids=ids, gallery_ids=ids, cameras=["hall"] * 4)
    with pytest.raises(UserError, match=r"one camera only \(hall\).*evaluate\.protocol=any_camera"):
        evaluate(one)
    assert evaluate(one, Settings(protocol="any_camera")).protocol["queries_used"] == 2


def test_absent_identities_are_named(tmp_path):
    sets = two_sided(
        tmp_path, query_ids=["d", "c", "b", "a"], gallery_ids=["y"], cameras=["1"] * 4 + ["2"]
    )
    with pytest.raises(UserError, match=r"4 queries .*not in the gallery \(a, b, c, \.\.\.\)"):
        evaluate(sets)


def test_a_missing_split_is_named(tmp_path):
    table = embedding_table(np.eye(3, dtype=np.float32), identity=["x"] * 3, split="train")
    with pytest.raises(UserError, match=r"split='query' \(splits there: train\)"):
        evaluate(embedding_set(tmp_path, table))


@pytest.fixture(scope="module")
def real_embeddings(data_root: Path) -> Path:
    path = data_root / "market1501_osnet_embeddings.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def test_yardstick_of_real_embeddings(real_embeddings):
    found = evaluate(load_embeddings(real_embeddings))
    assert {name: round(found.metrics[name], 4) for name in YARDSTICK} == YARDSTICK
    assert found.protocol["queries_used"] == 3368
    assert found.protocol["queries_dropped"] == {}
    assert found.protocol["gallery_size"] == 15913


def test_yardstick_from_disk_in_small_tiles(real_embeddings):
    stored = open_embeddings(real_embeddings, splits=("query", "gallery"), hold_mb=0)
    found = evaluate(stored, Settings(memory_mb=8, resamples=0, by_camera=False))
    assert {name: round(found.metrics[name], 4) for name in YARDSTICK} == YARDSTICK


def test_yardstick_of_re_ranking(real_embeddings):
    stored = open_embeddings(real_embeddings, splits=("query", "gallery"))
    found = evaluate(stored, Settings(rerank=Rerank(), resamples=0, by_camera=False))
    assert {name: round(found.metrics[name], 4) for name in RERANKED} == RERANKED
    assert "re-ranking (k1 20, k2 6, lambda 0.3)" in describe_protocol(found.protocol)
