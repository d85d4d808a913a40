"""Where a trained model looks in an image, as one picture.

The network says what can be looked at (`ReidModel.explanations`); here it is computed for one image
and handed to `pipelines.explain_picture`.

At test time there are no classes, so what Grad-CAM asks for is a similarity: the cosine to the
embedding of another image, or, without one, the inner product of the image's embedding with itself.
The mirror image, which `embed.flip` adds to an embedding, is left out.

Legend: H W image size, h w rows and columns of a grid, E embedding dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.embedder import Embedder
from pipelines.engine import to_model_input
from pipelines.errors import UserError
from pipelines.images import ImageError, decode, intake
from reid_models.attention_maps import record_attention
from reid_models.explanations import (
    AttentionRollout,
    CrossAttention,
    Explanation,
    GradCam,
    PartSimilarity,
)


@dataclass(frozen=True, kw_only=True)
class Heat:
    """One explanation of an image."""

    title: str
    values_hw: np.ndarray
    """float32 [h, w], one value a cell of a grid that covers the image."""


@dataclass(frozen=True, kw_only=True)
class Explained:
    """What was seen of an image."""

    pixels_HW3: np.ndarray
    """uint8: the image as the network sees it, before normalisation."""
    other_HW3: np.ndarray | None
    """The same of the image that it was compared with."""
    similarity: float | None
    """Cosine of the two embeddings."""
    heats: tuple[Heat, ...]


@dataclass(frozen=True)
class _Seen:
    """An image on its way through the network."""

    pixels_HW3: np.ndarray
    images_13HW: Tensor
    cameras_1: Tensor
    embedding_1E: Tensor


def explain(
    embedder: Embedder, image: Path, *, camera: str | None = None, against: Path | None = None
) -> Explained:
    """Look at one image, alone or in comparison with a second.

    Costs a forward pass of each image, one more with the attention written out, and a forward and a
    backward pass for each Grad-CAM.

    Args:
        embedder: the model.
        image: file of the image.
        camera: its camera; one that training did not know, or None, is the unknown camera.
        against: file of another image, of an unknown camera.

    Raises:
        UserError: an image that cannot be used, or a model with nothing to look at.
    """
    explanations = embedder.model.explanations()
    if against is None:
        explanations = tuple(e for e in explanations if not isinstance(e, PartSimilarity))
    if not explanations:
        raise UserError(f"{embedder.card.model} with these options has nothing that can be shown")
    own = _see(embedder, image, camera)
    other = None if against is None else _see(embedder, against, None)
    heats = _heats(embedder, explanations, own, other)
    return Explained(
        pixels_HW3=own.pixels_HW3,
        other_HW3=None if other is None else other.pixels_HW3,
        similarity=None if other is None else float(_cosine(own.embedding_1E, other.embedding_1E)),
        heats=tuple(
            Heat(title=explanation.title, values_hw=heat_1hw[0].cpu().numpy())
            for explanation, heat_1hw in zip(explanations, heats, strict=True)
        ),
    )


def _see(embedder: Embedder, path: Path, camera: str | None) -> _Seen:
    card = embedder.card
    try:
        pixels_HW3 = decode(intake(path.read_bytes()).data, card.image_size, card.interpolation)
    except (ImageError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: {reason}") from error
    images_13HW = to_model_input(
        torch.from_numpy(pixels_HW3.copy())[None],
        mean=card.mean,
        std=card.std,
        device=embedder.device,
    )
    cameras_1 = torch.tensor([card.camera_index(camera)], device=embedder.device)
    with torch.no_grad():
        embedding_1E = embedder.model(images_13HW, cameras_1).embedding.float()
    return _Seen(pixels_HW3, images_13HW, cameras_1, embedding_1E)


def _heats(
    embedder: Embedder, explanations: tuple[Explanation, ...], own: _Seen, other: _Seen | None
) -> list[Tensor]:
    """[1, h, w] of each explanation."""
    model, target = embedder.model, _target(other)
    attended = [e for e in explanations if isinstance(e, AttentionRollout | CrossAttention)]
    with record_attention({m: None for e in attended for m in e.modules}) as maps:
        if attended:
            with torch.no_grad():
                model(own.images_13HW, own.cameras_1)
    heats: list[Tensor] = []
    for explanation in explanations:
        match explanation:
            case GradCam():
                heats.append(explanation.heat(model, own.images_13HW, own.cameras_1, target))
            case PartSimilarity():
                assert other is not None
                heats.append(explanation.heat(own.embedding_1E, other.embedding_1E))
            case _:
                heats.append(explanation.heat(maps))
    return heats


def _target(other: _Seen | None) -> Callable[[Tensor], Tensor]:
    """What Grad-CAM asks for: a function of the embedding [1, E]."""
    if other is None:
        return lambda embedding_1E: embedding_1E.square().sum(dim=1)
    return lambda embedding_1E: _cosine(embedding_1E, other.embedding_1E)


def _cosine(first_1E: Tensor, second_1E: Tensor) -> Tensor:
    return functional.cosine_similarity(first_1E, second_1E, dim=1)
