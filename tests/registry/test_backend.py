"""Which MLflow is talked to: databases that are made, refused, or named by the environment."""

import socket
import time
from pathlib import Path

import pytest

from pipelines.errors import UserError
from pipelines.registry import (
    Tracker,
)
from tests.registry.helpers import run_python


def test_import_is_light() -> None:
    code = "import sys, pipelines.registry; print({'mlflow', 'torch', 'pandas'} & set(sys.modules))"
    output, errors = run_python(code).communicate()
    assert (output.strip(), errors) == ("set()", "")


OPEN = """
import os, sys
import mlflow.store.tracking.sqlalchemy_store
from pipelines.registry import Tracker

def child():
    print(Tracker.open(sys.argv[1]).start_run("child"), flush=True)
    os._exit(0)

children = [os.fork() or child() for _ in range(4)]
sys.exit(any([os.waitpid(process, 0)[1] for process in children]))
"""


def test_four_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    process = run_python(OPEN, str(tmp_path), MLFLOW_DISABLE_TELEMETRY="true")
    output, errors = process.communicate()
    assert (process.returncode, errors) == (0, "")
    tracker = Tracker.open(str(tmp_path))
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert len(runs) == 4
    assert {run.info.run_id for run in runs} == set(output.split())


def test_database_whose_creation_was_killed_is_made_again(tmp_path: Path) -> None:
    process = run_python(
        "import sys; from pipelines.registry import Tracker; Tracker.open(sys.argv[1])",
        str(tmp_path),
    )
    while not list(tmp_path.glob(".tmp-*")) and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    tracker = Tracker.open(str(tmp_path))
    assert tracker.find_run({"none": "such"}) is None
    assert list(tmp_path.glob(".tmp-*")) == []
    assert tracker.uri == f"sqlite:///{tmp_path / 'mlflow.db'}"


def test_store_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/store/mlflow\.db: cannot be written"):
        Tracker.open(str(tmp_path / "file" / "store"))


def test_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("something else altogether, and long enough to be read")
    with pytest.raises(UserError, match=r"mlflow\.db: cannot be read .*not a database"):
        Tracker.open(str(tmp_path))
    assert (tmp_path / "mlflow.db").read_text().startswith("something else")


def test_path_that_a_uri_would_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"50%/mlflow\.db: a path with"):
        Tracker.open(str(tmp_path / "50%"))


def test_remote_store_needs_a_tracking_uri() -> None:
    with pytest.raises(UserError, match=r"memory://bucket.*MLFLOW_TRACKING_URI"):
        Tracker.open("memory://bucket")


def test_server_that_does_not_listen_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with pytest.raises(UserError, match=f"{uri}: no server answers"):
            Tracker.open("unused")


def test_deleted_experiment_is_named(tracker: Tracker) -> None:
    store = str(Path(tracker.uri.removeprefix("sqlite:///")).parent)
    other = Tracker.open(store, experiment="other")
    assert other.experiment_id != tracker.experiment_id
    other.client.delete_experiment(other.experiment_id)
    with pytest.raises(UserError, match="'other' was deleted"):
        Tracker.open(store, experiment="other")


def test_environment_names_the_database(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = tracker.start_run("elsewhere", tags={"where": "elsewhere"})
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    assert Tracker.open(str(tmp_path)).find_run({"where": "elsewhere"}) == run
    assert list(tmp_path.iterdir()) == []
