"""The files of a model version, built without MLflow's run state and without a pickle.

`mlflow.pyfunc.log_model` wants an active fluent run and infers requirements by loading the model in
a subprocess; `save_model` with the requirements given does neither. The folder it writes holds the
weights as safetensors, the model card and the recipe, and the source file that joins them.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

    from pipelines.embedder import ModelCard

MODEL_CODE = Path(__file__).parents[1] / "pyfunc_model.py"
REQUIREMENTS = ("rayreid", "mlflow", "safetensors", "timm", "torch", "torchvision")


def checked_card(plain: Mapping[str, Any]) -> "ModelCard":
    """The card of a mapping; `ValueError` for one that lacks a key or has an unknown one."""
    from pipelines.embedder import ModelCard

    try:
        return ModelCard.from_dict(dict(plain))
    except TypeError as error:
        raise ValueError(f"model card {dict(plain)}: {error}") from error


def check_weights(weights: Path) -> None:
    """Raise `UserError` for anything that is no whole safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, framework="numpy"):
            pass
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{weights}: not a whole safetensors file ({error}); train again"
        ) from error


@contextmanager
def packed_model(
    *,
    weights: Path,
    recipe_yaml: str,
    card: "ModelCard",
    metadata: Mapping[str, Any],
    logged_model: "LoggedModel",
) -> Iterator[Path]:
    """A temporary folder with the whole pyfunc model, to be uploaded while the block lasts.

    Needs up to twice the size of the weights in the temporary folder.
    """
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    with tempfile.TemporaryDirectory(prefix="rayreid-model-") as temporary:
        parts = Path(temporary)
        card_file, recipe = parts / "model_card.json", parts / "recipe.yaml"
        card_file.write_text(json.dumps(card.to_dict(), indent=1), encoding="utf-8")
        recipe.write_text(recipe_yaml, encoding="utf-8")
        save_model(
            parts / "model",
            python_model=str(MODEL_CODE),
            artifacts={
                "weights": str(weights),
                "model_card": str(card_file),
                "recipe": str(recipe),
            },
            signature=_signature(card.embedding_dim),
            input_example=_example(card),
            pip_requirements=[_pinned(package) for package in REQUIREMENTS],
            metadata=dict(metadata),
            mlflow_model=Model(
                artifact_path=logged_model.artifact_location,
                model_uuid=logged_model.model_id,
                model_id=logged_model.model_id,
                run_id=logged_model.source_run_id,
            ),
        )
        yield parts / "model"


def _signature(embedding_dim: int) -> "ModelSignature":
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    image = ColSpec("binary", "image")
    camera = ColSpec("string", "camera", required=False)
    embedding = TensorSpec(np.dtype("float32"), (-1, embedding_dim))
    return ModelSignature(inputs=Schema([image, camera]), outputs=Schema([embedding]))


def _example(card: "ModelCard") -> "pd.DataFrame":
    """A grey image: shows how a request looks, without anybody's picture."""
    import pandas as pd
    from PIL import Image

    height, width = card.image_size
    encoded = BytesIO()
    Image.new("RGB", (width, height), (128, 128, 128)).save(encoded, format="PNG")
    return pd.DataFrame({"image": [encoded.getvalue()], "camera": ["unknown"]})


def _pinned(package: str) -> str:
    """`package==version`, without a local part such as `+cpu` that no index has."""
    try:
        return f"{package}=={version(package).split('+')[0]}"
    except PackageNotFoundError:  # a source tree on PYTHONPATH, as in a submitted job
        return package
