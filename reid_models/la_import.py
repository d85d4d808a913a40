"""Official checkpoints of LA-Transformer and LA-TF++ into this package's model.

Both official codes save one state dict. The backbone's own classifier, which nothing uses, is in
every file and is left out. Sources: SiddhantKapil/LA-Transformer and
aditi184/Person_Re-Identification.

    official                                    here
    model                                       transformer.trunk
    cls_token, pos_embed (copies)               transformer.trunk.cls_token, .pos_embed
    classifierI.add_block.0, .1                 heads.NAME.reduction, .neck
    classifierI.classifier.0                    heads.NAME.classifier

I is the row of patches from the top, or 0 where one head serves all.
"""

import os
from collections.abc import Collection, Iterable

import torch

from reid_models.key_maps import KeyMap, renamed
from reid_models.la_transformer import LATransformer
from reid_models.weights import (
    StateDict,
    load_allowing,
    read_state_dict,
    resize_position_embedding,
)

_BACKBONE = "model."
_UNUSED = "model.head."
_STORED_TWICE = ("cls_token", "pos_embed")
_POSITION = "transformer.trunk.pos_embed"


def load_official(
    model: LATransformer, path: str | os.PathLike[str], *, allow: Collection[str] = ()
) -> tuple[str, ...]:
    """Fill the model from an official checkpoint, heads included; all of it or nothing.

    The position embedding is resized bilinearly to the model's grid. A model of another image
    height has another number of heads, and one for other identities other classifiers: allow
    "heads." and "classifier" to take the backbone alone there.

    Args:
        model: with the options of the system that the checkpoint is of.
        path: a file for `read_state_dict`.
        allow: beginnings of names. Tensors that begin so may be missing, unknown or of another
            shape; the model then keeps its own values. A tensor goes by its name in the model, or
            by that in the file where the model has no place for it.

    Returns:
        The names of the tensors that were let off by `allow`, sorted.

    Raises:
        ValueError: the file cannot be read, its two copies of a token differ, or tensors that
            `allow` does not cover are missing, unknown or of another shape; the error names them.
    """
    state = _converted(read_state_dict(path), model, source=str(path))
    return load_allowing(model, state, source=str(path), allow=allow)


def _converted(official: StateDict, model: LATransformer, *, source: str) -> StateDict:
    state = {key: value for key, value in official.items() if not key.startswith(_UNUSED)}
    for key in _STORED_TWICE:
        if key not in state:
            continue
        copy = state.pop(key)
        if not torch.equal(state.setdefault(f"{_BACKBONE}{key}", copy), copy):
            raise ValueError(
                f"the weights of {source!r} hold two different tensors as {key} and "
                f"{_BACKBONE}{key}, which are one in the official model"
            )
    state = renamed(state, _key_map(model.heads))
    if _POSITION in state and state[_POSITION].ndim == 3:
        state[_POSITION] = resize_position_embedding(
            state[_POSITION], grid=model.transformer.grid, prefix_tokens=1
        )
    return state


def _key_map(heads: Iterable[str]) -> KeyMap:
    rules = [(r"^model\.", "transformer.trunk.")]
    for number, name in enumerate(heads):
        rules.append((rf"^classifier{number}\.add_block\.0\.", f"heads.{name}.reduction."))
        rules.append((rf"^classifier{number}\.add_block\.1\.", f"heads.{name}.neck."))
        rules.append((rf"^classifier{number}\.classifier\.0\.", f"heads.{name}.classifier."))
    return rules
