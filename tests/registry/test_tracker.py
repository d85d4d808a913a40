"""Runs in a real SQLite store."""

import json
from pathlib import Path

import pytest

from pipelines.registry import (
    Tracker,
)
from tests.registry.helpers import local


def test_run_holds_what_was_logged(tracker: Tracker, tmp_path: Path) -> None:
    parent = tracker.start_run("run", tags={"fingerprint": "it's"}, params={"seed": 1})
    params = {"model": {"cnn": "resnet10t", "size": [64, 32], "weights": None}, "notes": "n" * 7000}
    child = tracker.start_run("train", parent=parent, params=params)
    rows = [("train/loss", 1 / (step + 1), step, 1_000 + step) for step in range(2_500)]
    tracker.log_metrics(child, rows)
    tracker.log_bytes(child, b"\x89PNG", "plots/cmc.png")
    (tmp_path / "report.html").write_text("<p>")
    tracker.log_artifact_file(child, tmp_path / "report.html", "pages")
    tracker.end_run(child)

    run = tracker.client.get_run(child)
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == parent
    notes = run.data.params.pop("notes")
    assert run.data.params == {
        "model.cnn": "resnet10t",
        "model.size": "[64, 32]",
        "model.weights": "null",
    }
    assert len(notes) == 6000
    assert notes == "n" * 5997 + "..."
    folder = local(run.info.artifact_uri)
    assert json.loads((folder / "params.json").read_text())["notes"] == "n" * 7000
    assert (folder / "plots" / "cmc.png").read_bytes() == b"\x89PNG"
    assert (folder / "pages" / "report.html").read_text() == "<p>"
    history = tracker.client.get_metric_history(child, "train/loss")
    assert [(m.key, m.value, m.step, m.timestamp) for m in history] == rows


def test_run_is_found_by_all_its_tags_newest_first(tracker: Tracker) -> None:
    first = tracker.start_run("first", tags={"fingerprint": "it's", "kind": "find"})
    second = tracker.start_run("second", tags={"fingerprint": "it's", "kind": "find"})
    tracker.start_run("third", tags={"fingerprint": 'say "so"', "kind": "find"})
    assert first != second
    assert tracker.find_run({"fingerprint": "it's", "kind": "find"}) == second
    assert tracker.find_run({"fingerprint": "IT'S", "kind": "find"}) is None
    assert tracker.find_run({"fingerprint": 'say "so"', "kind": "lost"}) is None
    with pytest.raises(ValueError, match="both kinds of quotes"):
        tracker.find_run({"fingerprint": "'\""})


def test_reopened_run_goes_on_without_double_points(tracker: Tracker) -> None:
    params = {"lr": 0.1, "workers": 2}
    run = tracker.start_run("train", tags={"fingerprint": "reopened"}, params=params)
    tracker.log_metrics(run, [("loss", 3.0, 0, 10), ("loss", 2.0, 1, 11), ("lr", 0.1, 0, 10)])
    tracker.end_run(run, "KILLED")

    found = tracker.find_run({"fingerprint": "reopened"})
    again = tracker.start_run("train", run_id=found, params={"lr": 0.1, "workers": 4, "new": True})
    assert again == run
    assert tracker.client.get_run(run).info.status == "RUNNING"
    tracker.log_metrics(run, [("loss", 2.0, 1, 99), ("loss", 2.5, 1, 99), ("loss", 1.0, 2, 99)])
    history = tracker.client.get_metric_history(run, "loss")
    assert sorted((m.step, m.value) for m in history) == [(0, 3.0), (1, 2.0), (1, 2.5), (2, 1.0)]
    data = tracker.client.get_run(run).data
    assert data.params == {"lr": "0.1", "workers": "2", "new": "true"}
    assert json.loads(data.tags["params_changed"]) == {"workers": "4"}


def test_dataset_is_an_input_and_a_tag(tracker: Tracker) -> None:
    run_id = tracker.start_run("ingest")
    fingerprint = "0123456789abcdef" * 4
    for _ in range(2):
        tracker.log_dataset(
            run_id, name="drawn", fingerprint=fingerprint, source="/blocks", profile={"images": 960}
        )
    run = tracker.client.get_run(run_id)
    assert run.data.tags["data_fingerprint"] == fingerprint
    (entry,) = run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("drawn", fingerprint[:36])
    assert json.loads(entry.dataset.profile) == {"images": 960}
    assert [(tag.key, tag.value) for tag in entry.tags] == [("mlflow.data.context", "training")]
