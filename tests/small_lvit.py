"""LViT-Net made small for tests, and the names of its readings."""

import torch

from reid_models import create_model
from reid_models.lvit_net import LViTNet

IMAGE_SIZE = (64, 32)
CLASSES, CAMERAS = 4, 3
SMALL = {
    "transformer": "vit_tiny_patch16_224",
    "local_widths": (8, 16, 24, 32),
    "norm_groups": 8,
    "dfcf_heads": 3,
}
SWIN = {"transformer": "swin_tiny_patch4_window7_224"}
LEVELS = {"dfcf_placement": "levels"}
CLASS_TOKENS = {"dfcf_exchange": "class_tokens"}
SEPARATE = {"share_iterations": False}


def small_model(**options: object) -> LViTNet:
    torch.manual_seed(0)
    settings = {**SMALL, **options}
    return create_model(
        "lvit_net", CLASSES, image_size=IMAGE_SIZE, camera_count=CAMERAS, **settings
    )
