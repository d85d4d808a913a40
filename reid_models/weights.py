"""Weights in and out: safetensors files, timm's published weights, strict loading.

A branch (one timm network inside a model) is loaded strictly: every tensor that the branch has must
be in the file with the same shape, and nothing else but a classifier may be in it. A mismatch is an
error that lists the keys; nothing is loaded by halves. Nothing here unpickles code.

Memory: a file is read whole into CPU memory, next to the model that it fills.

Shapes: N tokens of a position embedding, C token dim.
"""

import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional

StateDict = dict[str, Tensor]

_WRAPPER_KEYS = ("model", "state_dict", "state_dict_ema")
"""What checkpoints wrap their tensors in: DeiT's files the first, T2T-ViT's published ones the
last."""

_PARALLEL = "module."
_KEYS_SHOWN = 5


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the whole model as one safetensors file that `load_model` takes."""
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    safetensors.torch.save_file(state, path)


def load_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Fill the whole model from a file of `save_model`, heads included.

    Raises:
        ValueError: the file cannot be read, or its tensors are not exactly the model's.
    """
    load_strict(model, read_state_dict(path), source=str(path))


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Tensors of a `.safetensors` file, or of any other file as `torch.load(weights_only=True)`.

    A checkpoint that wraps its tensors under `model`, `state_dict` or `state_dict_ema` is
    unwrapped; the `module.` that training on several GPUs puts before every name is left out.

    Raises:
        ValueError: no such file, a damaged file, or content other than named tensors.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"there is no weights file at {str(file)!r}")
    loaded: Any
    try:
        if file.suffix == ".safetensors":
            loaded = safetensors.torch.load_file(file)
        else:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise ValueError(f"cannot read weights from {str(file)!r}: {_one_line(error)}") from error
    except Exception as error:  # torch's reader fails on garbage in ways it does not document
        raise ValueError(
            f"cannot read weights from {str(file)!r}: it is damaged, no PyTorch file, or holds "
            "more than tensors (code in a weights file is never run)"
        ) from error
    for key in _WRAPPER_KEYS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()
    ):
        raise ValueError(f"{str(file)!r} holds something other than a dict of named tensors")
    if all(key.startswith(_PARALLEL) for key in loaded):
        return {key.removeprefix(_PARALLEL): value for key, value in loaded.items()}
    return dict(loaded)


def timm_state_dict(name: str) -> StateDict:
    """The weights that timm publishes for a network, at their own resolution, classifier included.

    Raises:
        ValueError: timm has none for this name, or they can be had neither from timm's cache nor
            from the network.
    """
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"cannot get timm's weights of {name!r}: {_one_line(error)}. "
            "Give a weights file instead, or start without pretrained weights"
        ) from error


def load_strict(
    module: nn.Module,
    state: StateDict,
    *,
    source: str,
    skip_prefixes: Collection[str] = (),
) -> None:
    """Copy `state` into `module`; all of it or nothing.

    Args:
        module: the network to fill.
        state: named tensors; converted to the module's dtypes.
        source: where they come from, for the error.
        skip_prefixes: keys of the classifier: left out where the module has no such key.

    Raises:
        ValueError: keys missing, unexpected or of another shape. The batch counters of batch norms
            may be missing: they have no effect on the output, and old files lack them.
    """
    own = module.state_dict()
    given = {
        key: value
        for key, value in state.items()
        if key in own or not key.startswith(tuple(skip_prefixes))
    }
    problems = {
        "missing": [k for k in own if k not in given and not k.endswith("num_batches_tracked")],
        "unexpected": [k for k in given if k not in own],
        "of another shape": [
            f"{k} {list(given[k].shape)} instead of {list(own[k].shape)}"
            for k in own
            if k in given and given[k].shape != own[k].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(_listed(kind, keys) for kind, keys in problems.items() if keys)
        raise ValueError(f"the weights of {source!r} do not fit the model: {listed}")
    module.load_state_dict(given, strict=False)


def load_allowing(
    module: nn.Module, state: StateDict, *, source: str, allow: Collection[str]
) -> tuple[str, ...]:
    """As `load_strict`, but tensors whose name begins with one of `allow` may be missing, unknown
    or of another shape; the module then keeps its own values.

    Returns:
        The names of the tensors that were let off, sorted.

    Raises:
        ValueError: see `load_strict`; or `allow` is one string, whose letters would each be taken
            for the beginning of a name.
    """
    if isinstance(allow, str):
        raise ValueError(f"allow is a collection of beginnings of names, got the string {allow!r}")
    own = module.state_dict()
    unfit = [
        key
        for key in own.keys() | state.keys()
        if key not in own or key not in state or state[key].shape != own[key].shape
    ]
    let_off = sorted(key for key in unfit if key.startswith(tuple(allow)))
    given = {key: value for key, value in state.items() if key not in let_off}
    given |= {key: own[key] for key in let_off if key in own}
    load_strict(module, given, source=source)
    return tuple(let_off)


def resize_position_embedding(
    position_1NC: Tensor, *, grid: tuple[int, int], prefix_tokens: int
) -> Tensor:
    """Bring a learned position embedding to another grid, bilinearly (align_corners false).

    Args:
        position_1NC: [1, prefix_tokens + rows * columns, C], row-major. Its own grid is the square
            one where the number of tokens is a square number, else it must be `grid` already.
        grid: rows and columns wanted.
        prefix_tokens: leading class or register tokens, which have no place and stay as they are.

    Raises:
        ValueError: the grid of the given embedding cannot be told.
    """
    prefix_1PC, cells_1NC = position_1NC[:, :prefix_tokens], position_1NC[:, prefix_tokens:]
    count = cells_1NC.shape[1]
    side = math.isqrt(count)
    old_grid = (side, side) if side * side == count else grid
    if old_grid[0] * old_grid[1] != count:
        raise ValueError(
            f"a position embedding of {count} cells is neither square nor the model's grid of "
            f"{grid[0]}x{grid[1]}"
        )
    if old_grid == grid:
        return position_1NC
    map_1Chw = cells_1NC.float().unflatten(1, old_grid).permute(0, 3, 1, 2)
    resized_1Chw = functional.interpolate(map_1Chw, size=grid, mode="bilinear", align_corners=False)
    resized_1NC = resized_1Chw.flatten(2).transpose(1, 2).to(position_1NC.dtype)
    return torch.cat([prefix_1PC, resized_1NC], dim=1)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(": .")


def _listed(kind: str, keys: list[str]) -> str:
    shown = ", ".join(keys[:_KEYS_SHOWN])
    rest = len(keys) - _KEYS_SHOWN
    return f"{len(keys)} {kind} ({shown}{f', and {rest} more' if rest > 0 else ''})"
