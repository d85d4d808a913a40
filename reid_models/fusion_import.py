"""Official checkpoints of FusionReID into this package's model.

The official code (924973292/FusionReID) saves one state dict. The names of its units changed once;
both sets are read, the older one stands in brackets. A model of one branch was saved without the
prefix of the branch. The classifier of the transformer's pretraining, which nothing uses, is in
every file and is left out.

    official                                    here
    resnet.base                                 cnn.trunk
    resnet.gap, gap_r, gap_f                    gem_global, gem.cnn, gem.transformer
    transformer.base                            transformer.trunk
    transformer.base.sie_embed                  transformer.side_information.table_KC
    res_LRU, former_LRU                         lru.cnn, lru.transformer
    HTM.blocks.I (mix.blocks.I)                 htms.I
      .SEU (.sa), .SEU1, .SEU2                    .seu.shared, .seu.cnn, .seu.transformer
      .MFU                                        .mfu.shared
      .MUF_RES, .MFU_FORMER (.res_q, .former_q)   .mfu.cnn, .mfu.transformer
    resnet.X, transformer.X, X_1 ... X_4        heads.NAME.X, X being the bottleneck (here the
                                                neck) and the classifier of a feature
"""

import math
import os
import re
from collections.abc import Collection

from reid_models.fusion_reid import FusionReID
from reid_models.key_maps import KeyMap, renamed
from reid_models.weights import (
    StateDict,
    load_allowing,
    read_state_dict,
    resize_position_embedding,
)

_UNUSED = ("transformer.base.fc.", "transformer.base.head.")
_BRANCH_PREFIX = {"cnn_global": "resnet.", "transformer_global": "transformer."}
_POSITION = "transformer.trunk.pos_embed"
_SIDE_INFORMATION = "transformer.side_information.table_KC"

_UNITS = {
    "SEU|sa": "seu.shared",
    "SEU1": "seu.cnn",
    "SEU2": "seu.transformer",
    "MFU": "mfu.shared",
    "MUF_RES|res_q": "mfu.cnn",
    "MFU_FORMER|former_q": "mfu.transformer",
}
_UNIT_PARTS = {
    "seu": (("blocks.0", "block"),),
    "mfu": (
        ("blocks.0.norm1", "norm_query"),
        ("blocks.0.attn.norm", "norm_key"),
        ("blocks.0.attn.q", "query"),
        ("blocks.0.attn.k", "key"),
        ("blocks.0.attn.v", "value"),
        ("blocks.0.attn.proj", "proj"),
        ("blocks.0.norm2", "norm_mlp"),
        ("blocks.0.mlp", "mlp"),
    ),
}
_LRU_PARTS = ("dwconv", "bn1", "act1", "ptconv", "bn2", "act2")
_HEAD_NUMBERS = {
    "cnn_initial": 1,
    "transformer_initial": 2,
    "cnn_fused": 3,
    "transformer_fused": 4,
}


def load_official(
    model: FusionReID, path: str | os.PathLike[str], *, allow: Collection[str] = ()
) -> tuple[str, ...]:
    """Fill the model from an official checkpoint, heads included; all of it or nothing.

    The model needs the options and the image size that the checkpoint was trained with; a position
    embedding of a square grid, as pretrained ones have, is resized to the model's. For other
    identities allow "heads.", for other cameras "transformer.side_information.".

    Args:
        model: the model to fill.
        path: a file for `read_state_dict`.
        allow: beginnings of names. Tensors that begin so may be missing, unknown or of another
            shape; the model then keeps its own values. A tensor goes by its name in the model, or
            by that in the file where the model has no place for it.

    Returns:
        The names of the tensors that were let off by `allow`, sorted.

    Raises:
        ValueError: the file cannot be read, or tensors that `allow` does not cover are missing,
            unknown or of another shape; the error names them.
    """
    state = _converted(read_state_dict(path), model)
    return load_allowing(model, state, source=str(path), allow=allow)


def _converted(official: StateDict, model: FusionReID) -> StateDict:
    state = dict(official)
    if len(model.options.supervised) == 1:
        prefix = _BRANCH_PREFIX[model.options.supervised[0]]
        state = {f"{prefix}{key}": value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not key.startswith(_UNUSED)}
    state = renamed(state, _key_map())
    if _SIDE_INFORMATION in state:  # [K, 1, C] there
        state[_SIDE_INFORMATION] = state[_SIDE_INFORMATION].flatten(0, -2)
    position_1NC = state.get(_POSITION)
    if model.transformer is None or position_1NC is None or position_1NC.ndim != 3:
        return state
    grid = model.transformer.grid
    if position_1NC.shape[1] != 1 + math.prod(grid):  # else it was trained on this very grid
        state[_POSITION] = resize_position_embedding(position_1NC, grid=grid, prefix_tokens=1)
    return state


def _key_map() -> KeyMap:
    rules = [
        (r"^resnet\.base\.", "cnn.trunk."),
        (r"^resnet\.gap\.p$", "gem_global.p"),
        (r"^gap_r\.p$", "gem.cnn.p"),
        (r"^gap_f\.p$", "gem.transformer.p"),
        (r"^transformer\.base\.sie_embed$", _SIDE_INFORMATION),
        (r"^transformer\.base\.tokens_to_token\.", "transformer.trunk.patch_embed."),
        (r"^transformer\.base\.", "transformer.trunk."),
        (r"^resnet\.bottleneck\.", "heads.cnn_global.neck."),
        (r"^resnet\.classifier\.", "heads.cnn_global.classifier."),
        (r"^transformer\.bottleneck\.", "heads.transformer_global.neck."),
        (r"^transformer\.classifier\.", "heads.transformer_global.classifier."),
    ]
    for name, number in _HEAD_NUMBERS.items():
        rules.append((rf"^bottleneck_{number}\.", f"heads.{name}.neck."))
        rules.append((rf"^classifier_{number}\.", f"heads.{name}.classifier."))
    for branch, official in (("cnn", "res_LRU"), ("transformer", "former_LRU")):
        for index, part in enumerate(_LRU_PARTS):
            rules.append((rf"^{official}\.{part}\.", f"lru.{branch}.{index}."))
    for official, unit in _UNITS.items():
        module = rf"^(?:HTM|mix)\.blocks\.(\d+)\.(?:{official})\."
        for old, new in _UNIT_PARTS[unit.partition(".")[0]]:
            rules.append((rf"{module}{re.escape(old)}\.", rf"htms.\1.{unit}.{new}."))
        rules.append((module, rf"htms.\1.{unit}."))
    return rules
