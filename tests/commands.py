"""Commands, in this process where only what they do is asked, and in processes of their own where
it matters how they start and end."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner

REID = [sys.executable, "-m", "pipelines"]
LIMIT = 600


def answer(*args: object) -> dict[str, Any]:
    """What the command answers with `--json`, run in this process and, if it has one, on its Ray.

    An error comes out as it is: `UserError` for the user's mistake.
    """
    from pipelines.cli import reid

    done = CliRunner().invoke(reid, [*map(str, args), "--json"], catch_exceptions=False)
    return json.loads(done.stdout.splitlines()[-1])


def interrupt(command: list[str], when: Callable[[], bool]) -> subprocess.CompletedProcess[str]:
    """Run in a process group of its own, and send SIGINT to it as a terminal does."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + LIMIT
    while not when():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def require_interrupted(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("reid: interrupted")


def run_states(store: Path) -> dict[str, list[str]]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiment = client.get_experiment_by_name("rayreid")
    states: dict[str, list[str]] = {}
    for run in client.search_runs([experiment.experiment_id]):
        states.setdefault(run.data.tags["rayreid.stage"], []).append(run.info.status)
    return states
