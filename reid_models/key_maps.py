"""From the tensor names of one code base to those of another: ordered rules of renaming."""

import re
from collections.abc import Sequence

from reid_models.weights import StateDict

KeyMap = Sequence[tuple[str, str]]
"""(pattern, replacement) pairs for `re.sub`; the first pattern that is found in a name renames it.
A name without a pattern stays."""

VIT_KEY_MAP: KeyMap = (
    # torchvision's VisionTransformer; mlp.0 and mlp.3 are linear_1 and linear_2 of newer files
    (r"^class_token$", "cls_token"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.ln_([12])\.", r"blocks.\1.norm\2."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.in_proj_", r"blocks.\1.attn.qkv."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.self_attention\.out_proj\.", r"blocks.\1.attn.proj."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:0|linear_1)\.", r"blocks.\1.mlp.fc1."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.mlp\.(?:3|linear_2)\.", r"blocks.\1.mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.", "head."),
    # T2T-ViT's own code
    (r"^tokens_to_token\.", "patch_embed."),
)
"""To timm's names of a vision transformer; names that are timm's already stay."""


def renamed(state: StateDict, key_map: KeyMap) -> StateDict:
    """The tensors of `state` under the names that `key_map` gives them.

    Raises:
        ValueError: two tensors would get the same name.
    """
    out: StateDict = {}
    origin: dict[str, str] = {}
    for old, value in state.items():
        new = _renamed_key(old, key_map)
        if new in out:
            raise ValueError(f"the tensors {origin[new]!r} and {old!r} both stand for {new!r}")
        out[new], origin[new] = value, old
    return out


def _renamed_key(key: str, key_map: KeyMap) -> str:
    for pattern, replacement in key_map:
        new, found = re.subn(pattern, replacement, key, count=1)
        if found:
            return new
    return key
