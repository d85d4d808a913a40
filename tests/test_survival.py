"""Training goes on: Ctrl-C ends it with 130 in one line; a worker that dies is started again."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.commands import LIMIT, REID, interrupt, require_interrupted, run_states
from tests.conftest import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow]
LONG = ("train.steps_per_epoch=200", "train.checkpoint_epochs=0.02")


def descendants(pid: int, name: str) -> list[int]:
    """Processes of this name among the children of a process, and theirs."""
    listed = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()[1:]]
    parents = {int(child): int(parent) for child, parent, _ in rows}
    found = []
    for child, _, arguments in rows:
        above = int(child)
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and arguments.startswith(name):
            found.append(int(child))
    return found


def test_a_killed_worker_is_started_again_and_the_weights_are_the_same(tmp_path: Path) -> None:
    settings = ("train.steps_per_epoch=12", "train.epochs=1", "train.checkpoint_epochs=0.2")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    command = [*REID, "train", "demo", *TINY, *settings, "--json", "--store"]
    plain = subprocess.run([*command, str(whole)], capture_output=True, text=True, timeout=LIMIT)
    assert plain.returncode == 0, plain.stderr

    process = subprocess.Popen(
        [*command, str(broken)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + LIMIT
    while not any(broken.glob("runs/*/checkpoints/step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = descendants(process.pid, "ray::RayTrainWorker")
    assert len(workers) == 1
    os.kill(workers[0], signal.SIGKILL)
    out, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, err
    assert "train: a worker failed, going on from step" in err
    shas = [json.loads(text.splitlines()[-1])["weights_sha256"] for text in (plain.stdout, out)]
    assert shas[0] == shas[1]


def test_ctrl_c_in_training(tmp_path: Path) -> None:
    command = [*REID, "run", "demo", *TINY, *LONG, "--store", str(tmp_path), "--json"]
    done = interrupt(command, lambda: any(tmp_path.glob("runs/*/checkpoints/step-*")))
    require_interrupted(done)
    assert run_states(tmp_path)["train"] == ["KILLED"]
    assert run_states(tmp_path)["pipeline"] == ["KILLED"]
    assert not list(tmp_path.glob("runs/*/manifest.json"))
