"""Parts of embeddings, against the slices they are."""

import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.embedding_parts import parts_of, with_parts
from pipelines.errors import UserError
from pipelines.retrieval import Rerank, Settings, chosen_parts, evaluate, open_embeddings
from pipelines.retrieval.embeddings import EmbeddingSet
from pipelines.retrieval.features import ROWS_AT_ONCE, Choice, find_parts
from pipelines.retrieval.vectors import HeldVectors
from tests.embedding_files import embedding_set, embedding_table, random_table

NAMED = (("global", 3), ("upper", 2), ("lower", 5))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)


def random_set(count: int = 30, parts: tuple[tuple[str, int], ...] = NAMED) -> EmbeddingSet:
    vectors = unit(np.random.default_rng(1).standard_normal((count, 10))).astype(np.float32)
    table = embedding_table(vectors, identity=["x"] * count)
    return EmbeddingSet(rows=table.drop_columns("embedding"), vectors=vectors, parts=parts)


def test_parts_by_name_by_range_and_all_of_them():
    assert find_parts(("lower", "global"), NAMED, 10) == ((5, 10), (0, 3))
    assert find_parts(("2:7", "upper"), NAMED, 10) == ((2, 7), (3, 5))
    assert find_parts((), NAMED, 10) == ((0, 3), (3, 5), (5, 10))
    assert find_parts(("0:10",), (), 10) == ((0, 10),)


@pytest.mark.parametrize(
    "text", ["head", "3:3", "5:4", "0:11", "-1:4", "1.0:4", ":4", "2:", "", "2"]
)
def test_what_is_no_part_is_refused(text):
    with pytest.raises(UserError, match=r"evaluate\.parts: .*global, upper, lower, or START:STOP"):
        find_parts((text,), NAMED, 10)
    with pytest.raises(UserError, match=r"give START:STOP between 0 and 10"):
        find_parts((text,), (), 10)


@pytest.mark.parametrize("each_unit", [False, True])
def test_chosen_parts_are_slices_of_unit_length(each_unit):
    whole = random_set()
    how = Settings(parts=("lower", "0:3"), unit_parts=each_unit)
    chosen = chosen_parts(whole, how)
    slices = [whole.vectors[:, 5:10].astype(np.float64), whole.vectors[:, 0:3].astype(np.float64)]
    expected = unit(np.concatenate([unit(s) for s in slices] if each_unit else slices, axis=1))
    index = np.array([0, 3, 4, 29])
    assert np.allclose(chosen.vectors_of(index), expected[index], atol=1e-6)
    ((first, block),) = chosen.source_of(index).blocks(100)
    assert first == 0
    assert np.array_equal(block, chosen.vectors_of(index))
    assert chosen.vectors_of(index).dtype == np.float32
    assert chosen.dim == 8
    assert chosen.parts == (("5:10", 5), ("0:3", 3))
    assert chosen.fingerprint == whole.fingerprint
    assert chosen.rows is whole.rows


def test_unit_parts_weigh_the_same_whatever_their_lengths():
    vectors = np.array([[30.0, 40, 0.3, 0.4], [3, 4, 30, 40]], dtype=np.float32)
    picked = Choice(((0, 2), (2, 4)), each_unit=True).pick(vectors)
    assert np.allclose(picked, np.array([[0.6, 0.8, 0.6, 0.8]] * 2) / np.sqrt(2))


def test_a_part_without_length_stays_zero():
    vectors = np.array([[0.0, 0, 3, 4], [0, 0, 0, 0]], dtype=np.float32)
    picked = Choice(((0, 2), (2, 4)), each_unit=True).pick(vectors)
    assert np.allclose(picked, [[0, 0, 0.6, 0.8], [0, 0, 0, 0]])


def test_more_rows_than_are_taken_at_once():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((2 * ROWS_AT_ONCE + 3, 4)).astype(np.float32)
    picked = Choice(((1, 3),), each_unit=False).pick(vectors)
    assert np.allclose(picked, unit(vectors[:, 1:3]), atol=1e-6)


def test_nothing_chosen_is_the_whole_and_unknown_parts_cannot_be_unit():
    whole = random_set(parts=())
    assert chosen_parts(whole, Settings()) is whole
    with pytest.raises(UserError, match=r"unit_parts.*do not tell their parts"):
        chosen_parts(whole, Settings(unit_parts=True))
    assert chosen_parts(random_set(), Settings(unit_parts=True)).dim == 10


def test_parts_travel_in_the_file(tmp_path):
    table = with_parts(random_table(0), (("a", 60), ("b", 4)))
    path = tmp_path / "one.parquet"
    pq.write_table(table, path)
    assert parts_of(pq.read_schema(path)) == (("a", 60), ("b", 4))
    stored = open_embeddings(path, splits=("query", "gallery"))
    assert stored.parts == (("a", 60), ("b", 4))
    assert parts_of(random_table(0).schema) == ()
    assert chosen_parts(stored, Settings(parts=("b",))).vectors_of(np.arange(3)).shape == (3, 4)


@pytest.mark.parametrize("hold_mb", [0, 100])
def test_figures_of_parts_are_those_of_the_slices(tmp_path, hold_mb):
    table = random_table(2)
    path = tmp_path / "whole.parquet"
    pq.write_table(table, path)
    how = Settings(parts=("0:9", "40:64"), resamples=0)
    stored = open_embeddings(path, splits=("query", "gallery"), hold_mb=hold_mb)
    found = evaluate(chosen_parts(stored, how), how)
    raw = np.stack(table["embedding"].to_numpy(zero_copy_only=False))
    columns = {name: table[name].to_pylist() for name in table.column_names[:-1]}
    slices = embedding_table(np.concatenate([raw[:, :9], raw[:, 40:]], axis=1), **columns)
    expected = evaluate(embedding_set(tmp_path, slices), Settings(resamples=0))
    assert found.metrics == pytest.approx(expected.metrics, abs=1e-9)
    assert found.protocol["embedding_dim"] == 33
    assert found.protocol["parts"] == ["0:9", "40:64"]
    assert found.metrics != pytest.approx(evaluate(stored, Settings(resamples=0)).metrics)


def test_parts_of_held_vectors_are_held_and_can_be_re_ranked(tmp_path):
    how = Settings(parts=("0:40",), rerank=Rerank(k1=6, k2=2), resamples=0)
    whole = embedding_set(tmp_path, random_table(3))
    chosen = chosen_parts(whole, how)
    assert isinstance(chosen.source_of(np.arange(5)), HeldVectors)
    assert evaluate(chosen, how).protocol["rerank"] == {"k1": 6, "k2": 2, "weight": 0.3}


def test_what_is_sent_to_a_worker_holds_no_other_vectors(tmp_path):
    path = tmp_path / "whole.parquet"
    pq.write_table(random_table(1, queries=10, gallery=3000), path)
    stored = open_embeddings(path, splits=("query", "gallery"), hold_mb=0)
    source = chosen_parts(stored, Settings(parts=("0:2",))).source_of(np.arange(10, 3010))
    part = source.part(100, 110)
    assert [first for first, _ in part.blocks(4)] == [100, 104, 108]
    assert len(pickle.dumps(part)) < 2000
