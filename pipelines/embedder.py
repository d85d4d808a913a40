"""A trained model as a function from images to embeddings: the same for batch jobs, search and the
registry.

A model folder holds `model.safetensors` and `card.json`. The card says all that the weights do
not: the system and its options, the input size and normalisation, and the camera names in the
order of their indices.

Legend: B batch, H height, W width, D embedding dimension.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.nn import functional

import reid_models
from pipelines.engine import load_weights, to_model_input
from pipelines.errors import UserError
from pipelines.images import Interpolation, decode, intake
from pipelines.recipe import WEIGHTS_SUFFIX, Recipe
from pipelines.recipe_sections import Precision

WEIGHTS = "model.safetensors"
CARD = "card.json"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is needed to build the model and to feed it."""

    model: str
    """Registered name of the system."""
    options: dict[str, Any]
    """Its options."""
    num_classes: int
    cameras: tuple[str, ...]
    """Training cameras; an image of any other camera goes in as `unknown`."""
    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    flip: bool
    """Whether the mirrored image's embedding is added."""
    embedding_dim: int
    precision: Precision = "fp32"
    """Arithmetic of the network; the embeddings are float32."""

    @classmethod
    def of_recipe(
        cls, recipe: Recipe, *, cameras: tuple[str, ...], num_classes: int
    ) -> "ModelCard":
        """The recipe's model for these training cameras and identities.

        Raises:
            UserError: the model cannot be built so.
        """
        # A trained model needs no pretrained branches: their files stay behind.
        options = recipe.model.options().items()
        return cls(
            model=recipe.model.name,
            options={k: None if k.endswith(WEIGHTS_SUFFIX) else v for k, v in options},
            num_classes=num_classes,
            cameras=cameras,
            image_size=recipe.input.image_size,
            mean=recipe.input.mean,
            std=recipe.input.std,
            interpolation=recipe.input.interpolation,
            flip=recipe.embed.flip,
            precision=recipe.embed.precision,
            embedding_dim=0,
        )._measured()

    def as_embedded_by(self, recipe: Recipe) -> Self:
        """The card of the same weights, with what the recipe takes for the embedding."""
        section = recipe.embed
        card = replace(self, flip=section.flip, precision=section.precision)
        if section.model is None:
            card = replace(card, options=card.options | recipe.model.embedding_options())
        return card._measured()

    def _measured(self) -> Self:
        try:
            with torch.device("meta"):
                return replace(self, embedding_dim=self.create_model().embedding_dim)
        except (TypeError, ValueError) as error:
            raise UserError(f"model: {error}") from error

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "ModelCard":
        """From the content of `card.json`."""
        tuples = ("cameras", "image_size", "mean", "std")
        values: dict[str, Any] = {k: tuple(v) if k in tuples else v for k, v in plain.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The content of `card.json`."""
        return asdict(self)

    def camera_index(self, camera: str | None) -> int:
        """Index of a training camera, -1 for any other."""
        return self.cameras.index(camera) if camera in self.cameras else -1

    def create_model(self) -> reid_models.ReidModel:
        """The untrained network. Nothing is downloaded: the weights come from the model folder."""
        options: dict[str, Any] = {
            k: None if k.endswith("_weights") else tuple(v) if isinstance(v, list) else v
            for k, v in self.options.items()
        }
        return reid_models.create_model(
            self.model,
            self.num_classes,
            image_size=self.image_size,
            camera_count=len(self.cameras),
            **options,
        )


class Embedder:
    """A model in evaluation mode on one device."""

    def __init__(self, card: ModelCard, weights: Path, device: str | torch.device = "cpu") -> None:
        self.card = card
        self.device = torch.device(device)
        self.model = card.create_model()
        load_weights(weights, self.model)
        self.model.eval().to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def embed(self, image_BHW3: np.ndarray, camera_B: np.ndarray) -> np.ndarray:
        """L2-normalised float32 [B, D] of uint8 pixels and int64 camera indices (-1 unknown).

        With `flip` the raw embeddings of the image and its mirror image are added before
        normalising.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(image_BHW3))
        images = to_model_input(pixels, mean=self.card.mean, std=self.card.std, device=self.device)
        cameras = torch.from_numpy(camera_B.copy()).to(self.device)
        with torch.autocast(
            self.device.type, dtype=torch.bfloat16, enabled=self.card.precision == "bf16"
        ):
            embedding_BD = self.model(images, cameras).embedding.float()
            if self.card.flip:
                embedding_BD = embedding_BD + self.model(images.flip(-1), cameras).embedding.float()
        return functional.normalize(embedding_BD).cpu().numpy()

    def embed_files(self, data: Sequence[bytes], cameras: Sequence[str | None]) -> np.ndarray:
        """float32 [B, D] of encoded images as a user hands them in; `ImageError` names what is
        wrong with one."""
        pixels = [
            decode(intake(d).data, self.card.image_size, self.card.interpolation) for d in data
        ]
        indices = np.array([self.card.camera_index(c) for c in cameras], dtype=np.int64)
        return self.embed(np.stack(pixels), indices)


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder; a `UserError` where there is none."""
    try:
        return ModelCard.from_dict(json.loads((folder / CARD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder / CARD}: no readable model card ({error}); train the model first"
        ) from error


def default_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
