"""One MLflow run for a pipeline run, a nested run for each stage; a repeated command goes on in
the same runs."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipelines.console import Reporter
from pipelines.registry import Tracker

FINGERPRINT = "rayreid.fingerprint"
STAGE = "rayreid.stage"


@contextmanager
def tracked(
    tracker: Tracker,
    name: str,
    fingerprint: str,
    *,
    stage: str = "pipeline",
    parent: str | None = None,
    params: Mapping[str, object] | None = None,
) -> Iterator[str]:
    """The MLflow run of this work for the time of the block; yields its id.

    It is found again by its fingerprint, and closed as FINISHED, as KILLED by Ctrl-C, or as FAILED.
    """
    tags = {FINGERPRINT: fingerprint, STAGE: stage}
    run_id = tracker.start_run(
        name, parent=parent, run_id=tracker.find_run(tags), tags=tags, params=params
    )
    try:
        yield run_id
    except KeyboardInterrupt:
        tracker.end_run(run_id, "KILLED")
        raise
    except BaseException:
        tracker.end_run(run_id, "FAILED")
        raise
    tracker.end_run(run_id)


def step_logger(tracker: Tracker, run_id: str) -> Callable[[list[dict[str, float]], int], None]:
    """A listener for `Reporter.on_steps`: every value of every row as a point of a curve."""

    def log(rows: list[dict[str, float]], time_ms: int) -> None:
        points = [
            (name, value, int(row["step"]), time_ms)
            for row in rows
            for name, value in row.items()
            if name != "step"
        ]
        tracker.log_metrics(run_id, points)

    return log


@contextmanager
def listening(
    reporter: Reporter, listener: Callable[[list[dict[str, float]], int], None]
) -> Iterator[None]:
    """Let the listener have the rows that training writes during the block."""
    reporter.on_steps.append(listener)
    try:
        yield
    finally:
        reporter.on_steps.remove(listener)


def replay(folder: Path, listener: Callable[[list[dict[str, float]], int], None]) -> None:
    """Give the listener what a finished training wrote into this folder."""
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = content if isinstance(content, list) else [content]
        listener(rows, path.stat().st_mtime_ns // 1_000_000)
