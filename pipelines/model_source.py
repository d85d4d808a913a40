"""The trained model that a user names: a model folder, a registered version, or a recipe.

    ./store/runs/demo-0123456789ab          a folder with model.safetensors and card.json
    models:/demo-drawn@champion             a version in the registry of the store
    demo                                    a recipe, which has been trained in the store

Nothing is trained here, and no data is read.
"""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.embedder import CARD, WEIGHTS, Embedder, ModelCard, default_device, read_card
from pipelines.errors import UserError
from pipelines.store import Folder

if TYPE_CHECKING:
    from pipelines.recipe import Recipe

REGISTERED = re.compile(r"models:/(?P<name>[\w.-]+)(?:@(?P<alias>[\w.-]+)|/(?P<version>[0-9]+))")


def open_model(source: str, overrides: Sequence[str], store_uri: str) -> Embedder:
    """The model in evaluation mode, on the GPU if there is one.

    Args:
        source: a model folder, `models:/NAME@ALIAS`, `models:/NAME/VERSION`, or a recipe.
        overrides: `key.sub=value` that the recipe was trained with.
        store_uri: where recipes are trained and versions registered.

    Raises:
        UserError: there is no such model, or it has not been trained.
    """
    is_folder = Path(source).is_dir()
    if overrides and (is_folder or source.startswith("models:")):
        raise UserError(f"{overrides[0]}: {source} is a trained model; only a recipe takes options")
    if source.startswith("models:"):
        return _registered(source, store_uri)
    return _of_folder(Path(source)) if is_folder else _of_recipe(source, overrides, store_uri)


def _of_folder(folder: Path) -> Embedder:
    card = read_card(folder)
    if not (folder / WEIGHTS).is_file():
        raise UserError(f"{folder}: no {WEIGHTS}; its training is not finished")
    return _embedder(card, folder / WEIGHTS, said_by=str(folder / CARD))


def _embedder(card: ModelCard, weights: Path, *, said_by: str) -> Embedder:
    try:
        return Embedder(card, weights, default_device())
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{said_by}: this version builds no such model ({error}); train or import it again"
        ) from error


def _of_recipe(source: str, overrides: Sequence[str], store_uri: str) -> Embedder:
    from pipelines.recipe_file import load_recipe, open_recipe
    from pipelines.train import named_folder

    try:
        open_recipe(source)
    except UserError as error:
        raise UserError(f"{error}; nor is {source} a folder with a trained model") from error
    recipe = load_recipe(source, overrides)
    if recipe.embed.model is not None:
        folder = named_folder(recipe).local()
    else:
        folder = _trained(recipe, " ".join([source, *overrides]), store_uri)
    card = read_card(folder).as_embedded_by(recipe)
    return _embedder(card, folder / WEIGHTS, said_by=str(folder / CARD))


def _trained(recipe: "Recipe", words: str, store_uri: str) -> Path:
    """Folder of the recipe's finished run; the newest, if its data has changed in between."""
    from pipelines.blocks import Blocks
    from pipelines.store import Store
    from pipelines.training_fingerprint import training_fingerprint

    root = Folder.open(store_uri)
    known = (
        sorted(root.fs.glob(root.path(f"blocks/{recipe.dataset_title}-*"))) if root.exists() else []
    )
    all_blocks = [root / "blocks" / path.rstrip("/").rsplit("/", 1)[-1] for path in known]
    runs = [
        Store(root).room("runs", recipe.title, training_fingerprint(recipe, Blocks.open(b.uri)))
        for b in all_blocks
        if b.committed() is not None
    ]
    trained = [run.local() for run in runs if run.committed() is not None]
    if not trained:
        raise UserError(
            f"{recipe.recipe} is not trained in {root.uri}: run `reid train {words} --store "
            f"{store_uri}`, "
            "or name a folder with a trained model"
        )
    return max(trained, key=lambda folder: (folder / WEIGHTS).stat().st_mtime_ns)


def _registered(source: str, store_uri: str) -> Embedder:
    """The model of a registered version; one that lies elsewhere is downloaded for the time that it
    is loaded."""
    named = REGISTERED.fullmatch(source)
    if named is None:
        raise UserError(f"{source}: write models:/NAME@ALIAS or models:/NAME/VERSION")
    from pipelines.registry import Tracker
    from pipelines.registry.backend import Backend

    database = Backend.locate(store_uri).database
    if database is not None and not database.is_file():
        raise UserError(f"{source}: no model is registered in {store_uri}: there is no {database}")
    tracker = Tracker.open(store_uri)
    client, uri = tracker.client, tracker.uri
    from mlflow.artifacts import download_artifacts  # behind the tracker, which quietens MLflow
    from mlflow.exceptions import MlflowException

    try:
        if named["alias"]:
            version = client.get_model_version_by_alias(named["name"], named["alias"])
        else:
            version = client.get_model_version(named["name"], named["version"])
        is_local = version.source.startswith(("file:", "/"))
        with tempfile.TemporaryDirectory(prefix="rayreid-model-") as temporary:
            folder = download_artifacts(
                version.source, dst_path=None if is_local else temporary, tracking_uri=uri
            )
            files = Path(folder) / "artifacts"
            card = json.loads((files / "model_card.json").read_text(encoding="utf-8"))
            return _embedder(ModelCard.from_dict(card), files / WEIGHTS, said_by=source)
    except (MlflowException, OSError) as error:
        raise UserError(f"{source} at {uri}: {str(error).splitlines()[0]}") from error
