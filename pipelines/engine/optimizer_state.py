"""The state of an optimiser as named tensors and plain values.

torch numbers parameters by their place in the groups; here every tensor is called `SLOT/PARAMETER`
(`momentum_buffer/classifier.weight`), so that a checkpoint can be read without the program, and a
changed model is noticed. Made for SGD, Adam and AdamW, whose slots are tensors.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn, optim

from pipelines.engine.weights import unwrap


def _grouped_names(optimizer: optim.Optimizer, model: nn.Module) -> list[list[str]]:
    names = {id(parameter): name for name, parameter in unwrap(model).named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def pack_optimizer(
    optimizer: optim.Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, and what JSON holds: the kind of optimiser and the groups.

    A slot without a value (SGD's buffer of momentum 0) is left out, and is empty again when
    unpacked.
    """
    tensors: dict[str, Tensor] = {}
    groups = []
    for group, names in zip(optimizer.param_groups, _grouped_names(optimizer, model), strict=True):
        for name, parameter in zip(names, group["params"], strict=True):
            slots = optimizer.state.get(parameter, {})
            tensors |= {f"{slot}/{name}": x for slot, x in slots.items() if x is not None}
        groups.append({**group, "params": names})
    return tensors, {"kind": type(optimizer).__name__, "groups": groups}


def unpack_optimizer(
    optimizer: optim.Optimizer,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    description: Mapping[str, Any],
) -> None:
    """Put what `pack_optimizer` gave into a fresh optimiser of the same kind and groups.

    Raises:
        ValueError: if kind, groups, parameters or shapes differ; the optimiser is then as it was.
    """
    if description["kind"] != type(optimizer).__name__:
        raise ValueError(f"optimiser {description['kind']}, not {type(optimizer).__name__}")
    grouped_names = _grouped_names(optimizer, model)
    if [group["params"] for group in description["groups"]] != grouped_names:
        raise ValueError("other groups of parameters")
    index = {name: i for i, name in enumerate(name for names in grouped_names for name in names)}
    shapes = {name: p.shape for name, p in unwrap(model).named_parameters()}
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        slot, _, name = key.partition("/")
        if name not in index:
            raise ValueError(f"unknown parameter {name!r}")
        if tensor.ndim and tensor.shape != shapes[name]:
            raise ValueError(f"{key} of shape {list(tensor.shape)}, not {list(shapes[name])}")
        state.setdefault(index[name], {})[slot] = tensor
    groups = []
    for own, saved, names in zip(
        optimizer.param_groups, description["groups"], grouped_names, strict=True
    ):
        # JSON turns the betas' tuple into a list
        values = {k: tuple(v) if isinstance(own.get(k), tuple) else v for k, v in saved.items()}
        groups.append({**values, "params": [index[name] for name in names]})
    optimizer.load_state_dict({"state": state, "param_groups": groups})
