"""Which checkpoints a run has. Apart from the engine, so that finding a step imports no torch."""

import re
from pathlib import Path

CHECKPOINT = re.compile(r"step-(\d{6,})")


def list_checkpoints(root: Path) -> list[tuple[int, Path]]:
    """The committed checkpoints under a folder, as (step, path), oldest first."""
    if not root.is_dir():
        return []
    matches = ((CHECKPOINT.fullmatch(path.name), path) for path in root.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def latest_checkpoint(root: Path) -> Path | None:
    """The committed checkpoint of the highest step, if there is one."""
    checkpoints = list_checkpoints(root)
    return checkpoints[-1][1] if checkpoints else None


def latest_step(root: Path) -> int:
    """The step that the newest checkpoint goes on from; 0 without one."""
    checkpoints = list_checkpoints(root)
    return checkpoints[-1][0] if checkpoints else 0
