"""`reid import`: a checkpoint of a system's official code as a model folder.

The folder is what training leaves: `model.safetensors`, `card.json` and, once it is whole, a
manifest. What no checkpoint tells (options, input size, normalisation) the recipe does.

Memory: the network and the checkpoint, side by side.
"""

import errno
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.console import Reporter, emit
from pipelines.errors import UserError

if TYPE_CHECKING:
    from pipelines.recipe import Recipe


def import_checkpoint(
    recipe: "Recipe",
    checkpoint: Path,
    out: str,
    *,
    classes: int,
    cameras: Sequence[str] = (),
    allow: Collection[str] = (),
) -> dict[str, Any]:
    """Write the model folder `out` from an official checkpoint; the folder's manifest.

    Args:
        recipe: the system, its options and the input that the checkpoint was trained with.
        checkpoint: the official file; nothing in it is run.
        out: a new folder.
        classes: identities that the checkpoint was trained on.
        cameras: names of its training cameras, in the order of their indices.
        allow: beginnings of names of tensors that may be missing, unknown or of another shape;
            they keep the values of an untrained network.

    Raises:
        UserError: the folder is not new or cannot be made, or the checkpoint does not fit; then
            nothing is written.
    """
    from pipelines.embedder import CARD, WEIGHTS, ModelCard
    from pipelines.engine import save_weights
    from pipelines.engine.weights import finite
    from pipelines.store import Folder, sha256_file
    from reid_models.official import load_official

    folder = Folder.open(out)
    _require_new(folder.local())
    card = ModelCard.of_recipe(recipe, cameras=tuple(cameras), num_classes=classes)
    model = card.create_model()
    try:
        let_off = load_official(model, checkpoint, allow=allow)
    except ValueError as error:
        raise UserError(
            f"{error}; give a whole checkpoint, and the options, input.image_size, --classes and "
            "--cameras that it was trained with"
        ) from error
    if not finite(model.state_dict()):
        raise UserError(f"{checkpoint}: holds infinite or undefined weights; get it again")
    _make(folder.local())
    with folder.lock():
        _require_new(folder.local())
        folder.write_json(CARD, card.to_dict())
        save_weights(folder.local(WEIGHTS), model)
        manifest = {
            "recipe": recipe.recipe,
            "weights_sha256": sha256_file(folder.fs, folder.path(WEIGHTS)),
            "imported": str(checkpoint.absolute()),
            "left_untrained": list(let_off),
        }
        folder.commit(manifest)
    return manifest


def _require_new(path: Path) -> None:
    """Refuse a place that is no folder or holds anything but what a killed import leaves there."""
    from pipelines.embedder import CARD, WEIGHTS

    try:
        names = sorted(entry.name for entry in path.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unusable(path, error) from error
    if WEIGHTS in names:
        raise UserError(f"{path}: holds a model already; name a new folder")
    others = [n for n in names if not n.startswith((".", CARD, f"{WEIGHTS}.tmp-"))]
    if others:
        raise UserError(f"{path}: holds other files ({others[0]}); name a new folder")


def _make(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: no folder to write in ({error.strerror}); name a new folder")


def _names(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    if "" in names or len(set(names)) != len(names):
        raise UserError(f"--cameras {text}: give distinct names, separated by commas")
    return names


def _beginnings(
    context: click.Context, parameter: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    if "" in names:
        raise UserError("--allow '': every name begins so; give the beginning of some")
    return names


@click.command(name="import")
@click.argument("recipe")
@click.argument(
    "checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE"
)
@click.argument("out", metavar="FOLDER")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--classes", required=True, type=click.IntRange(1), help="Identities it was trained on."
)
@click.option(
    "--cameras",
    default="",
    callback=_names,
    metavar="NAME,...",
    help="Names of its training cameras, in the order of their indices.",
)
@click.option(
    "--allow",
    multiple=True,
    callback=_beginnings,
    metavar="NAME",
    help="Tensors whose name begins so may be missing, unknown or of another shape; can be "
    "repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout.")
def import_official(
    recipe: str,
    checkpoint: Path,
    out: str,
    overrides: tuple[str, ...],
    classes: int,
    cameras: tuple[str, ...],
    allow: tuple[str, ...],
    as_json: bool,
) -> None:
    """A checkpoint of the system's official code as a model FOLDER.

    \b
    Example: reid import fusion_reid market.pth ./official --classes 751 --cameras c1,c2,c3,c4,c5,c6
    """
    from pipelines.recipe_file import load_recipe

    manifest = import_checkpoint(
        load_recipe(recipe, overrides),
        checkpoint,
        out,
        classes=classes,
        cameras=cameras,
        allow=allow,
    )
    untrained = ", ".join(manifest["left_untrained"])
    Reporter().say(f"{out}: model of {checkpoint}" + f", without {untrained}" * bool(untrained))
    if as_json:
        emit({"model": str(Path(out).expanduser().absolute()), **manifest})


COMMANDS = (import_official,)
