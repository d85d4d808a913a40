"""LEViT's published weights: their names, and the three convolutions that are one here.

Official code YuhuiWang99/LEViT. A published ImageNet checkpoint is a dict with the key `state_dict`
of 673 tensors, a published re-identification checkpoint a bare dict; names may start with
`module.`. Both layouts convert without loss in either direction.

    published                                       here
    stem.I.conv, .norm                              stem.I.conv, .bn
    stageS.layers.I.q, .k, .v                       stageS.I.attention.qkv
    stageS.layers.I.v_spe, .proj                    stageS.I.attention.local_value, .proj
    stageS.layers.I.attns.logit_scale               stageS.I.attention.logit_scale
    stageS.layers.I.mlp.proj_in                     stageS.I.mlp.expand
    stageS.layers.I.mlp.local_enhance, .proj_out    stageS.I.mlp.local, .project
    stageS.layers.I.skip                            stageS.I.skip

What stands before these (`stageS` is `layerS` in a re-identification model) is told by the
`published_units` of the module that is filled. A convolution and its norm have numbers there,
`conv` and `bn` here.
"""

import re
from collections.abc import Collection, Mapping
from os import PathLike
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from reid_models.levit_units import GROUP_WIDTH
from reid_models.weights import StateDict, load_allowing, read_state_dict

_PARTS = {
    "attention.qkv": (("q", 0), ("k", 0), ("v", 0)),
    "attention.local_value": (("v_spe", 0),),
    "attention.proj": (("proj", 1),),
    "mlp.expand": (("mlp.proj_in", 0),),
    "mlp.local": (("mlp.local_enhance", 0),),
    "mlp.project": (("mlp.proj_out", 0),),
    "skip.0": (("skip", 0),),
    "skip.1": (("skip", 2),),
}
"""Part of a block here -> its published names, each with the number of its convolution."""

_IN_BLOCK = re.compile(r"(\d+)\.(.+)\.(conv|bn)\.(\w+)")
_IN_STEM = re.compile(r"\d+\.(conv|bn)\.\w+")
_LOGIT_SCALE = re.compile(r"(\d+)\.attention\.logit_scale")


class PublishedModule(Protocol):
    """A LEViT, or a part of one, that knows where its parts stand in published weights."""

    published_units: ClassVar[Mapping[str, str]]

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


def load_official(
    module: PublishedModule, path: str | PathLike[str], *, allow: Collection[str] = ()
) -> tuple[str, ...]:
    """Fill a `LEViTBackbone`, a `LEViTClassifier` or a `LEViT` from published weights.

    Args:
        module: what is filled; all of it or nothing.
        path: the checkpoint, any file that `read_state_dict` takes.
        allow: beginnings of published names. Tensors that begin so may be missing, unknown or of
            another shape; the module then keeps its own values. `("class_list.",)` takes the
            checkpoint of a re-identification model with another number of identities.

    Returns:
        The published names of the tensors that were let off by `allow`, sorted.

    Raises:
        ValueError: the file cannot be read, or tensors that `allow` does not cover are missing,
            unknown or of another shape; the error lists their published names.
    """
    state = read_state_dict(path)
    return load_allowing(_PublishedLayout(module), state, source=str(path), allow=allow)


def official_state_dict(module: PublishedModule) -> StateDict:
    """The tensors of the module under their published names, as `load_official` takes them."""
    state: StateDict = {}
    for key, value in module.state_dict().items():
        names = _published_names(key, module.published_units)
        parts = _split(value) if len(names) > 1 else [value]
        state |= dict(zip(names, parts, strict=True))
    return state


class _PublishedLayout(nn.Module):
    """The module behind its published names, for `load_allowing`."""

    def __init__(self, module: PublishedModule) -> None:
        super().__init__()
        self.module = module

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return official_state_dict(self.module)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        whole = {k: state_dict.get(k, v).to(v) for k, v in official_state_dict(self.module).items()}
        fused = {}
        for key in self.module.state_dict():
            names = _published_names(key, self.module.published_units)
            fused[key] = _fuse([whole[name] for name in names])
        return self.module.load_state_dict(fused)


def _published_names(key: str, units: Mapping[str, str]) -> list[str]:
    """The published name of a tensor; the three names of a fused one."""
    unit = next(unit for unit in units if key.startswith(f"{unit}."))
    rest = key.removeprefix(f"{unit}.")
    prefix = units[unit]
    if _IN_STEM.fullmatch(rest):
        return [f"{prefix}.{rest.replace('bn.', 'norm.')}"]
    if match := _LOGIT_SCALE.fullmatch(rest):
        return [f"{prefix}.layers.{match[1]}.attns.logit_scale"]
    if match := _IN_BLOCK.fullmatch(rest):
        block, part, layer, tensor = match.groups()
        return [
            f"{prefix}.layers.{block}.{name}.{number + (layer == 'bn')}.{tensor}"
            for name, number in _PARTS[part]
        ]
    return [f"{prefix}.{rest}"]


def _split(fused: Tensor) -> list[Tensor]:
    """Query, key and value out of a tensor whose channels are (group, which, channel of group)."""
    if fused.ndim == 0:  # the batch counter of a norm
        return [fused.clone() for _ in range(3)]
    return [part.flatten(0, 1) for part in fused.unflatten(0, (-1, 3, GROUP_WIDTH)).unbind(1)]


def _fuse(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1 or parts[0].ndim == 0:
        return parts[0]
    groups = [part.unflatten(0, (-1, GROUP_WIDTH)) for part in parts]
    return torch.stack(groups, dim=1).flatten(0, 2)
