"""What the benchmark of the evaluation compares is the same work on the same data."""

import json

import numpy as np
import pytest

from benchmarks import evaluation
from benchmarks.dense_reranking import dense_rerank
from benchmarks.planted import Planted
from pipelines.retrieval import evaluate, load_embeddings
from pipelines.retrieval.reranking import rerank
from tests.slow_reranking import dense_rerank as slow_rerank

SMALL = Planted(
    queries=60, gallery=300, dim=48, identities=20, cameras=3, distractors=40, noise=1.3
)


def test_planted_identities_can_be_found_and_are_the_same_on_disk(tmp_path):
    SMALL.write(tmp_path / "planted.parquet")
    made, read = SMALL.embeddings(), load_embeddings(tmp_path / "planted.parquet")
    assert made.rows.equals(read.rows)
    assert np.allclose(made.vectors, read.vectors, atol=1e-7)
    found = evaluate(made)
    assert 20 < found.metrics["mAP"] < 99
    assert found.protocol["gallery_size"] == 340
    assert found.protocol["distractors"] == 40


def test_the_dense_algorithm_is_the_published_one():
    vectors = SMALL.embeddings().vectors[:200]
    queries, gallery = vectors[:30], vectors[30:]
    dense = dense_rerank(queries, gallery, k1=10, k2=4, weight=0.3)
    assert np.allclose(dense, slow_rerank(queries, gallery, 10, 4, 0.3), atol=1e-5)
    scores_QG = queries @ gallery.T
    sparse = rerank(queries, gallery, k1=10, k2=4, weight=0.3)
    sparse.adjust(scores_QG, slice(0, 30), slice(0, 170))
    assert np.allclose(-scores_QG, dense, atol=1e-5)


@pytest.mark.parametrize("work", ["msmt17", "market500k", "market500k_unheld", "rerank_msmt17"])
def test_a_comparison_tells_its_ratio(work, monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "SIZES", dict.fromkeys(evaluation.SIZES, SMALL))
    evaluation.main([work, "--rounds", "1"])
    record = json.loads(capsys.readouterr().out)
    assert record["work"] == work
    medians = record["seconds"]["median"], record["bare_seconds"]["median"]
    assert min(medians) >= 0
    assert record["ratio"] > 0


def test_growth_fits_an_exponent(monkeypatch, capsys):
    monkeypatch.setattr(evaluation, "GROWTH", (270, 540))
    evaluation.main(["growth"])
    record = json.loads(capsys.readouterr().out)
    assert [row["gallery"] for row in record["rows"]] == [270, 540]
    assert set(record["exponents"]) >= {"evaluate_seconds", "rerank_seconds"}
