"""The registry against a real MLflow server on loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.registry import (
    PromotionRefusedError,
    Tracker,
    promote,
    rollback,
)
from tests.registry.helpers import Registrar


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on a free port; ended by its process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    command += ["--artifacts-destination", (tmp_path / "artifacts").as_uri()]
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
    )
    uri = f"http://127.0.0.1:{port}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                opener.open(f"{uri}/health", timeout=5).close()
                break
            except OSError:
                alive = process.poll() is None and time.monotonic() < deadline
                assert alive, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


@pytest.mark.slow
def test_server_takes_runs_and_versions(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tracker = Tracker.open("unused")
    run = tracker.start_run("run", tags={"fingerprint": "f"}, params={"a": {"b": 1}})
    rows = [("loss", float(step), step, step) for step in range(1_500)]
    tracker.log_metrics(run, rows)
    tracker.log_bytes(run, b"<p>", "report.html")
    assert tracker.find_run({"fingerprint": "f"}) == run
    assert len(tracker.client.get_metric_history(run, "loss")) == 1_500

    register = Registrar(tracker, tmp_path, "served")
    assert register(70.0, fill=1.0) == 1
    assert register(70.0, fill=1.0) == 1
    assert promote(tracker, "served").version == 1
    assert register(60.0, fill=2.0) == 2
    with pytest.raises(PromotionRefusedError, match="below"):
        promote(tracker, "served")
    assert register.aliases() == {"champion": 1, "challenger": 2}
    promote(tracker, "served", force=True)
    assert rollback(tracker, "served") == 1
    assert {path.name for path in (tmp_path / "artifacts").rglob("*.safetensors")}
