"""From a model's name to a model: the table of networks, their options, and weights on request."""

import os
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from reid_models.fusion_reid import FusionReID, FusionReIDOptions
from reid_models.la_transformer import (
    LATransformer,
    LATransformerOptions,
    LATransformerPPOptions,
)
from reid_models.levit import LEViTLarge, LEViTOptions, LEViTSmall
from reid_models.lvit_net import LViTNet, LViTNetOptions
from reid_models.model import ReidModel
from reid_models.weights import load_model


@dataclass(frozen=True)
class _Entry:
    model: type[Any]
    """A `ReidModel` that takes these options."""
    options: type[Any]


_MODELS = {
    "fusion_reid": _Entry(FusionReID, FusionReIDOptions),
    "la_transformer": _Entry(LATransformer, LATransformerOptions),
    "la_transformer_pp": _Entry(LATransformer, LATransformerPPOptions),
    "levit_l": _Entry(LEViTLarge, LEViTOptions),
    "levit_s": _Entry(LEViTSmall, LEViTOptions),
    "lvit_net": _Entry(LViTNet, LViTNetOptions),
}


def list_models() -> list[str]:
    """Names that `create_model` takes, sorted."""
    return sorted(_MODELS)


def model_options(name: str) -> type[Any]:
    """The options of a model: a frozen, keyword-only dataclass that checks its values.

    Raises:
        ValueError: no such model.
    """
    return _entry(name).options


def published_image_size(name: str) -> tuple[int, int]:
    """(height, width) in pixels that a model was published with.

    Raises:
        ValueError: no such model.
    """
    size: tuple[int, int] = _entry(name).model.published_image_size
    return size


def create_model(
    name: str,
    num_classes: int,
    *,
    image_size: tuple[int, int],
    camera_count: int = 0,
    pretrained: bool | str | os.PathLike[str] = False,
    **options: Any,
) -> ReidModel:
    """Build a re-identification network, in training mode.

    Args:
        name: one of `list_models()`.
        num_classes: identities of the training set.
        image_size: (height, width) in pixels, fixed for the life of the model.
        camera_count: cameras of the training set; 0 or 1 leaves camera information out.
        pretrained: False: random weights, except branches whose weights option names some.
            True: timm's published weights for the branches whose weights option is None.
            A path: the whole model from a file of `weights.save_model`; weights options of
            branches are then not read.
        options: fields of `model_options(name)`.

    Raises:
        ValueError: an unknown name or option, a value out of range, weights that do not fit.
    """
    entry = _entry(name)
    known = [field.name for field in fields(entry.options)]
    for option in options:
        if option not in known:
            raise ValueError(
                f"model {name!r} has no option {option!r}; "
                f"the nearest name is {_nearest(option, known)!r}"
            )
    model: ReidModel = entry.model(
        num_classes,
        image_size=image_size,
        camera_count=camera_count,
        options=entry.options(**options),
    )
    if isinstance(pretrained, bool):
        model.load_branch_weights("timm" if pretrained else None)
    else:
        load_model(model, pretrained)
    return model


def _entry(name: str) -> _Entry:
    if name not in _MODELS:
        raise ValueError(
            f"no model {name!r}; the nearest name is {_nearest(name, list_models())!r}"
        )
    return _MODELS[name]


def _nearest(name: str, known: list[str]) -> str:
    return get_close_matches(name, known, n=1, cutoff=0.0)[0]
