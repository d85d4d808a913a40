"""Size and cost of a model, counted by running it."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from reid_models.model import ReidModel


@dataclass(frozen=True)
class ModelProfile:
    """What one image costs."""

    params: int
    """Parameters, frozen ones and training heads included."""

    gmac: float
    """10^9 multiply-adds of one image in eval mode: convolutions, matrix products and attention."""

    embedding_dim: int
    """D of the embedding."""

    image_size: tuple[int, int]
    """(height, width) in pixels."""


def profile_model(model: ReidModel) -> ModelProfile:
    """Count a model; built under `torch.device("meta")` it costs neither memory nor arithmetic."""
    device = next(model.parameters()).device
    image = torch.zeros(1, 3, *model.image_size, device=device)
    was_training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    model.train(was_training)
    return ModelProfile(
        params=sum(parameter.numel() for parameter in model.parameters()),
        gmac=counter.get_total_flops() / 2e9,
        embedding_dim=model.embedding_dim,
        image_size=model.image_size,
    )
