"""Attention weights of networks that compute none: they call a fused kernel, which keeps them in.

For the time of a `with` block every `scaled_dot_product_attention` inside the chosen modules is
seen by a torch function mode, which computes the weights once more, beside the kernel. Outside the
block nothing is hooked and nothing is slower.

Shapes: B batch, M heads, Q queries, K keys, d channels of a head.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

AttentionMaps = Mapping[nn.Module, list[Tensor]]
"""Module -> weights [B, Q, K] of its attentions, in the order of the calls."""


@contextmanager
def record_attention(modules: Iterable[nn.Module]) -> Iterator[AttentionMaps]:
    """The attention weights of these modules' forward passes, averaged over the heads.

    An attention belongs to the innermost of the modules that is running. The maps are float32,
    without gradient, on the model's device: 4 * B * Q * K bytes a call.

    Raises:
        ValueError: an attention with a mask, with dropout, or with fewer heads of keys than of
            queries.
    """
    maps: dict[nn.Module, list[Tensor]] = {module: [] for module in modules}
    recorder = _Recorder(maps)
    handles = [module.register_forward_pre_hook(recorder.enter) for module in maps]
    handles += [module.register_forward_hook(recorder.leave, always_call=True) for module in maps]
    # timm's attention has a second, unfused way, which an environment variable of its own chooses
    unfused: list[Any] = [m for module in maps for m in module.modules() if _is_unfused(m)]
    try:
        for module in unfused:
            module.fused_attn = True
        with recorder:
            yield maps
    finally:
        for module in unfused:
            module.fused_attn = False
        for handle in handles:
            handle.remove()


class _Recorder(TorchFunctionMode):
    def __init__(self, maps: dict[nn.Module, list[Tensor]]) -> None:
        super().__init__()
        self.maps = maps
        self.running: list[nn.Module] = []

    def enter(self, module: nn.Module, *_: object) -> None:
        self.running.append(module)

    def leave(self, *_: object) -> None:
        self.running.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and self.running:
            self.maps[self.running[-1]].append(_mean_weights(*args, **kwargs))
        return func(*args, **kwargs)


def _is_unfused(module: nn.Module) -> bool:
    return getattr(module, "fused_attn", None) is False


@torch.no_grad()
def _mean_weights(
    query_BMQd: Tensor,
    key_BMKd: Tensor,
    _value_BMKd: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(scale * q k^T), averaged over the heads: [B, Q, K]."""
    if attn_mask is not None or is_causal or enable_gqa or dropout_p:
        raise ValueError(
            "only plain attention in eval mode is recorded, got "
            f"attn_mask={attn_mask if attn_mask is None else list(attn_mask.shape)}, "
            f"dropout_p={dropout_p}, is_causal={is_causal}, enable_gqa={enable_gqa}"
        )
    scale = query_BMQd.shape[-1] ** -0.5 if scale is None else scale
    logits_BMQK = scale * (query_BMQd.float() @ key_BMKd.float().transpose(-2, -1))
    return logits_BMQK.softmax(dim=-1).mean(dim=1)
