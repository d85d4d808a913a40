"""Official checkpoints: which importer reads those of which model."""

import os
from collections.abc import Callable, Collection

from reid_models import fusion_import, la_import, levit_import
from reid_models.fusion_reid import FusionReID
from reid_models.la_transformer import LATransformer
from reid_models.levit import LEViT
from reid_models.model import ReidModel

_IMPORTERS: dict[type[ReidModel], Callable[..., tuple[str, ...]]] = {
    FusionReID: fusion_import.load_official,
    LATransformer: la_import.load_official,
    LEViT: levit_import.load_official,
}


def load_official(
    model: ReidModel, path: str | os.PathLike[str], *, allow: Collection[str] = ()
) -> tuple[str, ...]:
    """Fill the model from a checkpoint of its official code, heads included; all of it or nothing.

    Args:
        model: with the options, identities, cameras and image size that the checkpoint is of.
        path: a file for `weights.read_state_dict`.
        allow: beginnings of names; what they mean is told by the model's own importer, in
            `fusion_import`, `la_import` or `levit_import`.

    Returns:
        The names of the tensors that were let off by `allow`, sorted.

    Raises:
        ValueError: no official code of this model is known, the file cannot be read, or tensors
            that `allow` does not cover are missing, unknown or of another shape.
    """
    for kind, importer in _IMPORTERS.items():
        if isinstance(model, kind):
            return importer(model, path, allow=allow)
    raise ValueError(
        f"there are no official checkpoints of {type(model).__name__}; "
        f"known are those of {', '.join(kind.__name__ for kind in _IMPORTERS)}"
    )
