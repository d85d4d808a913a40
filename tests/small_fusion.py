"""FusionReID made small for tests."""

import torch

from reid_models import create_model
from reid_models.fusion_reid import FusionReID
from tests.slow_fusion import HEADS

IMAGE_SIZE = (64, 32)
CLASSES = 4
CAMERAS = 3


def small_model(
    camera_count: int = CAMERAS, *, classes: int = CLASSES, **options: object
) -> FusionReID:
    torch.manual_seed(0)
    settings = {
        "cnn": "resnet26",
        "transformer": "vit_tiny_patch16_224",
        "patch_stride": 12,
        "fusion_dim": 12,
        "fusion_heads": HEADS,
        **options,
    }
    return create_model(
        "fusion_reid", classes, image_size=IMAGE_SIZE, camera_count=camera_count, **settings
    )


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
