"""Training goes on: Ctrl-C ends it with 130 in one line; a worker that dies is started again; a
run that was cut at its very end keeps its weights and its figures."""

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.console import Reporter
from pipelines.errors import UserError
from pipelines.recipe_file import load_recipe
from pipelines.store import Store
from pipelines.train import run
from tests.commands import LIMIT, REID, interrupt, require_interrupted, run_states
from tests.conftest import TINY

pytestmark = [pytest.mark.ray, pytest.mark.slow]
LONG = ("train.steps_per_epoch=200", "train.checkpoint_epochs=0.02")
STEPS = 12
SETTINGS = (
    f"train.steps_per_epoch={STEPS}",
    "train.epochs=1",
    "train.checkpoint_epochs=0.2",
    "data.holdout=0.3",
    "batch.identities=2",
)


def train(store: Path, reporter: Reporter | None = None) -> dict[str, Any]:
    """A training with held-out identities: what `reid train --json` answers."""
    recipe = load_recipe("demo", [*TINY, *SETTINGS])
    result = run(recipe, Store.open(str(store)), reporter or Reporter())
    return {**result.values, "skipped": result.skipped}


@pytest.fixture(scope="module")
def whole(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    values = train(tmp_path_factory.mktemp("whole"))
    assert values["metrics"]["mAP"] > 0
    return values


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


def test_a_killed_worker_is_started_again_and_the_weights_are_the_same(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_at_the_first_checkpoint() -> None:
        deadline = time.monotonic() + LIMIT
        while not any(tmp_path.glob("runs/*/checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        killed.extend(descendants(os.getpid(), "ray::RayTrainWorker"))
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    said: list[str] = []
    reporter = Reporter()
    reporter.say = said.append  # type: ignore[method-assign]
    killer = threading.Thread(target=kill_at_the_first_checkpoint)
    killer.start()
    values = train(tmp_path, reporter)
    killer.join()
    assert len(killed) == 1
    assert any("train: a worker failed, going on from step" in line for line in said)
    assert values["weights_sha256"] == whole["weights_sha256"]
    assert values["metrics"] == whole["metrics"]


def test_a_cut_checkpoint_is_refused_with_its_name(whole: dict[str, Any]) -> None:
    folder = Path(whole["checkpoint"])
    manifest = folder / "manifest.json"
    kept = manifest.read_bytes()
    weights = sorted(folder.glob("checkpoints/step-*"))[-1] / "model.safetensors"
    content = weights.read_bytes()
    manifest.unlink()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="delete the folder") as refused:
        train(folder.parent.parent)
    assert str(weights) in str(refused.value)
    weights.write_bytes(content)
    manifest.write_bytes(kept)


def test_resume_without_a_step_left_keeps_the_figures(whole: dict[str, Any]) -> None:
    """A kill between the last checkpoint and the commit."""
    folder = Path(whole["checkpoint"])
    (folder / "manifest.json").unlink()
    (folder / "model.safetensors").unlink()
    resumed = train(folder.parent.parent)
    assert not resumed["skipped"]
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    rows = [json.loads(path.read_text()) for path in sorted((folder / "metrics").glob("steps-*"))]
    assert [row["step"] for part in rows for row in part] == list(range(STEPS))


def test_ctrl_c_in_training(tmp_path: Path) -> None:
    command = [*REID, "run", "demo", *TINY, *LONG, "--store", str(tmp_path), "--json"]
    done = interrupt(command, lambda: any(tmp_path.glob("runs/*/checkpoints/step-*")))
    require_interrupted(done)
    assert run_states(tmp_path)["train"] == ["KILLED"]
    assert run_states(tmp_path)["pipeline"] == ["KILLED"]
    assert not list(tmp_path.glob("runs/*/manifest.json"))
