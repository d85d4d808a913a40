"""A model's weights in one safetensors file, written whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pipelines.errors import UserError

_NAMES_SHOWN = 3


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel, so that names carry no `module.` prefix."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def host_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors takes them: in host memory, contiguous, no two sharing memory."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        copied = tensor.detach().cpu().contiguous()
        if copied.untyped_storage().data_ptr() in seen:
            copied = copied.clone()
        seen.add(copied.untyped_storage().data_ptr())
        result[name] = copied
    return result


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file and wait until the disk has it. Not atomic by itself."""
    safetensors.torch.save_file(host_tensors(tensors), path)
    sync_to_disk(path)


def sync_to_disk(path: Path) -> None:
    """Wait until the disk holds this file, or the entries of this folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in host memory.

    Raises:
        UserError: if the file is missing, cut, or something else.
    """
    try:
        return dict(safetensors.torch.load_file(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such weights file; check the path") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a whole safetensors file ({error}); copy or write it again"
        ) from error


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Put the tensors into the model; every name and shape must agree, else nothing is changed."""
    own = unwrap(model).state_dict()
    problems = []
    for what, names in (("lacks", own.keys() - tensors), ("has unknown", tensors.keys() - own)):
        if names:
            shown = ", ".join(sorted(names)[:_NAMES_SHOWN])
            problems.append(f"{what} {shown}" + ", ..." * (len(names) > _NAMES_SHOWN))
    for name in own.keys() & tensors:
        if own[name].shape != tensors[name].shape:
            problems.append(
                f"{name} is {list(tensors[name].shape)}, the model's is {list(own[name].shape)}"
            )
    if problems:
        raise UserError(
            f"{source}: weights of another model: {'; '.join(problems[:_NAMES_SHOWN])}; give the "
            "model options it was trained with, or another file"
        )
    unwrap(model).load_state_dict(dict(tensors))


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the model's parameters and buffers to a safetensors file, replacing it at once.

    A reader sees the old file or the new one, whole, whenever the writer is killed.
    """
    staged = path.with_name(f"{path.name}.tmp-{uuid4().hex}")
    try:
        write_tensors(staged, unwrap(model).state_dict())
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    sync_to_disk(path.parent)


def load_weights(path: Path, model: nn.Module) -> None:
    """Put a file of `save_weights` into the model, on whatever device it lies.

    Raises:
        UserError: if the file is missing or cut, or its names or shapes are not the model's; the
            model is then as it was.
    """
    load_tensors(model, read_tensors(path), path)


def finite(tensors: Mapping[str, Tensor]) -> bool:
    """Whether no tensor holds an infinity or a NaN."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())
