"""Checkpoints: folders that hold everything needed to go on at step N.

    ROOT/step-000040/model.safetensors       parameters and buffers
    ROOT/step-000040/optimizer.safetensors   the optimiser's tensors, `SLOT/PARAMETER`
    ROOT/step-000040/companions.safetensors  `loss/NAME`, `average/NAME`, where these have tensors
    ROOT/step-000040/state.json              step, seed, groups, sizes and SHA-256, versions, extra

A folder is written under a temporary name and renamed once the disk holds it, so a folder under
its final name is whole; leftovers of killed writers are ignored, and removed by the next save.
Random state is not saved: batches, augmentation and dropout are functions of (seed, step). One
process writes to a root. Nothing is a pickle.
"""

import hashlib
import json
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from torch import Tensor

from pipelines.checkpoints import CHECKPOINT, list_checkpoints
from pipelines.engine.metrics import DivergedError
from pipelines.engine.optimizer_state import pack_optimizer, unpack_optimizer
from pipelines.engine.state import TrainState
from pipelines.engine.weights import (
    finite,
    load_tensors,
    read_tensors,
    sync_to_disk,
    unwrap,
    write_tensors,
)
from pipelines.errors import UserError

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
COMPANIONS_FILE = "companions.safetensors"
STATE_FILE = "state.json"

_FORMAT = 1
_STAGED = "step-*.tmp-*"
_KEYS = {"step", "seed", "optimizer", "files", "extra"}


def save_checkpoint(root: Path, state: TrainState, *, extra: dict[str, Any]) -> Path:
    """Write the state after `state.step` steps to `root/step-NNNNNN` and return that folder.

    Args:
        root: folder of this run's checkpoints; made if missing. Leftovers of killed writers in it
            are removed, and a checkpoint of the same step is replaced.
        state: what is saved. Host memory of one copy of the model's, the optimiser's and the
            companions' tensors is used where they lie on a GPU.
        extra: JSON values that `load_checkpoint` gives back.

    Raises:
        DivergedError: if the losses or weights are no longer finite; nothing is written.
    """
    state.require_finite()
    model_tensors = unwrap(state.model).state_dict()
    if not finite(model_tensors):
        raise DivergedError(
            f"training diverged before step {state.step}: the weights are not finite; "
            "lower optim.lr, lengthen schedule.warmup_epochs or set optim.grad_clip"
        )
    optimizer_tensors, optimizer = pack_optimizer(state.optimizer, state.model)
    contents = {MODEL_FILE: model_tensors, OPTIMIZER_FILE: optimizer_tensors}
    if companions := _companion_tensors(state):
        contents[COMPANIONS_FILE] = companions
    root.mkdir(parents=True, exist_ok=True)
    _remove_staged(root)
    target = root / f"step-{state.step:06d}"
    staged = _staged_name(target)
    staged.mkdir()
    try:
        for name, tensors in contents.items():
            write_tensors(staged / name, tensors)
        content = {
            "format": _FORMAT,
            "step": state.step,
            "seed": state.seed,
            "optimizer": optimizer,
            "files": {name: _describe(staged / name) for name in contents},
            "versions": _versions(),
            "extra": extra,
        }
        (staged / STATE_FILE).write_text(json.dumps(content, indent=1))
        sync_to_disk(staged / STATE_FILE)
        sync_to_disk(staged)
        if target.exists():
            target.rename(_staged_name(target))
        staged.rename(target)
        sync_to_disk(root)
    finally:
        _remove_staged(root)
    return target


def load_checkpoint(path: Path, state: TrainState) -> dict[str, Any]:
    """Bring a fresh state to where the saved one was; returns the `extra` that was saved.

    The state must have been built as the saved one was: the same model, optimiser and seed.

    Raises:
        UserError: if a file of the checkpoint is missing, cut or changed, or if the checkpoint
            belongs to another model, optimiser or seed.
    """
    content = verify_checkpoint(path)
    if content["seed"] != state.seed:
        raise UserError(
            f"{path}: saved with seed {content['seed']}, not {state.seed}; "
            f"set seed={content['seed']} to go on, or delete the folder to start again"
        )
    load_tensors(state.model, read_tensors(path / MODEL_FILE), path / MODEL_FILE)
    try:
        unpack_optimizer(
            state.optimizer, state.model, read_tensors(path / OPTIMIZER_FILE), content["optimizer"]
        )
    except ValueError as error:
        raise UserError(
            f"{path / OPTIMIZER_FILE}: state of another optimiser ({error}); "
            "set optim as it was to go on, or delete the folder to start again"
        ) from error
    _load_companions(path, state, content["files"])
    state.step = content["step"]
    extra: dict[str, Any] = content["extra"]
    return extra


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """The content of `state.json`, if every file is as it was written; else a `UserError` names
    one."""
    content = _read_state(path)
    for name, expected in content["files"].items():
        _require_whole(path, name, expected)
    return content


def prune_checkpoints(root: Path, keep: int = 2) -> None:
    """Remove all but the newest checkpoints.

    A folder loses its name before its files, so one that is half removed is never taken for whole.
    """
    if keep < 1:
        raise ValueError(f"keep is at least 1, got {keep}")
    for _, path in list_checkpoints(root)[:-keep]:
        path.rename(_staged_name(path))
    _remove_staged(root)


def _companion_tensors(state: TrainState) -> dict[str, Tensor]:
    return {
        f"{companion}/{name}": tensor
        for companion, holder in state.companions().items()
        for name, tensor in holder.state_dict().items()
    }


def _load_companions(path: Path, state: TrainState, files: dict[str, Any]) -> None:
    file = path / COMPANIONS_FILE
    saved = read_tensors(file) if COMPANIONS_FILE in files else {}
    if surplus := {name.partition("/")[0] for name in saved} - state.companions().keys():
        raise UserError(
            f"{file}: has {', '.join(sorted(surplus))}, which this training has not; set the "
            "recipe as it was to go on, or delete the folder to start again"
        )
    for companion, holder in state.companions().items():
        prefix = f"{companion}/"
        own = {k.removeprefix(prefix): t for k, t in saved.items() if k.startswith(prefix)}
        try:
            holder.load_state_dict(own)
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{file}: {companion} of another training ({reason}); set {companion} as it was "
                "to go on, or delete the folder to start again"
            ) from error


def _staged_name(target: Path) -> Path:
    return target.with_name(f"{target.name}.tmp-{uuid4().hex}")


def _remove_staged(root: Path) -> None:
    for leftover in list(root.glob(_STAGED)):
        shutil.rmtree(leftover)


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "safetensors", "numpy")}
    return {"python": platform.python_version(), **packages}


def _read_state(path: Path) -> dict[str, Any]:
    file = path / STATE_FILE
    try:
        content = json.loads(file.read_text())
    except FileNotFoundError:
        _refuse(path, file, "the file is missing")
    except ValueError as error:
        _refuse(path, file, f"cut or changed ({error})")
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        _refuse(path, file, f"not a checkpoint of format {_FORMAT}")
    if missing := _KEYS - content.keys():
        _refuse(path, file, f"lacks {', '.join(sorted(missing))}")
    return content


def _require_whole(path: Path, name: str, expected: dict[str, Any]) -> None:
    file = path / name
    if not file.is_file():
        _refuse(path, file, "the file is missing")
    if (size := file.stat().st_size) != expected["bytes"]:
        _refuse(path, file, f"{size} bytes, not the {expected['bytes']} that were written")
    if _describe(file)["sha256"] != expected["sha256"]:
        _refuse(path, file, "its SHA-256 is not the one that was written")


def _refuse(path: Path, file: Path, reason: str) -> NoReturn:
    match = CHECKPOINT.fullmatch(path.name)
    step = int(match[1]) if match else 0
    earlier = [number for number, _ in list_checkpoints(path.parent) if number < step]
    start = f"step {earlier[-1]}" if earlier else "the start"
    raise UserError(f"{file}: {reason}; delete the folder {path} to go on from {start}")
