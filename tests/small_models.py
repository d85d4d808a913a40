"""Every registered model made small for tests, with what tells it from the others."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reid_models import ReidLoss, ReidModel, create_model

IMAGE_SIZE = (64, 32)
CAMERAS = 3
CLASSES = 5


@dataclass(frozen=True, kw_only=True)
class SmallModel:
    """How a model is made small, and which of the allowed behaviours is its own."""

    options: Mapping[str, object]
    """Make it small enough for a test."""

    no_chance: Mapping[str, object]
    """Options that leave nothing to chance in training mode."""

    reads_camera: bool
    """Whether side information of several cameras goes into the embedding."""

    frozen: int
    """Parameters that are not trained; each is the shift of a neck, and 0."""

    impossible_size: tuple[int, int]
    """An image size that it cannot be built for."""

    size_rule: str
    """Pattern of the error that tells the possible ones."""


_VIT = "vit_tiny_patch16_224"
_LEVIT = SmallModel(
    options={"window": 2, "frozen_neck_shift": "zero"},
    no_chance={"drop_path": 0.0},
    reads_camera=False,
    frozen=3,
    impossible_size=(80, 32),
    size_rule=r"multiple of 16 times window=2 .* got \(80, 32\), the nearest is \(64, 32\)",
)
_LA_TRANSFORMER = SmallModel(
    options={"transformer": _VIT, "side_information": 3.0},
    no_chance={"dropout": 0.0},
    reads_camera=True,
    frozen=0,
    impossible_size=(8, 32),
    size_rule=r"at least 16x16, .* image_size=\(8, 32\)",
)

SMALL: Mapping[str, SmallModel] = {
    "fusion_reid": SmallModel(
        options={
            "cnn": "resnet10t",
            "transformer": _VIT,
            "fusion_dim": 24,
            "fusion_heads": 2,
            "htm_depth": 2,
        },
        no_chance={"drop_path": 0.0},
        reads_camera=True,
        frozen=6,
        impossible_size=(16, 64),
        size_rule=r"at least 32x32, got \(16, 64\)",
    ),
    "la_transformer": _LA_TRANSFORMER,
    "la_transformer_pp": _LA_TRANSFORMER,
    "levit_l": _LEVIT,
    "levit_s": _LEVIT,
    "lvit_net": SmallModel(
        options={
            "transformer": _VIT,
            "side_information": 3.0,
            "local_widths": (16, 16, 32, 32),
            "norm_groups": 8,
            "dfcf_iterations": 2,
        },
        no_chance={"drop_path": 0.0, "dfcf_dropout": 0.0},
        reads_camera=True,
        frozen=1,
        impossible_size=(80, 32),
        size_rule=r"multiple of 32 .* got \(80, 32\), the nearest is \(64, 32\)",
    ),
}


def new_model(name: str, *, camera_count: int = CAMERAS, **options: object) -> ReidModel:
    """In training mode, as it is at the start."""
    torch.manual_seed(0)
    return create_model(
        name,
        CLASSES,
        image_size=IMAGE_SIZE,
        camera_count=camera_count,
        **{**SMALL[name].options, **options},
    )


@torch.no_grad()
def settled_model(name: str, **options: object) -> ReidModel:
    """In eval mode, its batch norms with the statistics of some images: without them the values of
    a deep network of batch norms grow from block to block."""
    model = new_model(name, **options)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    usual = {norm: norm.momentum for norm in norms}
    for norm in norms:
        norm.momentum = None  # the plain mean over the batches
    for seed in (11, 12):
        model(images(8, seed), cameras(8))
    for norm in norms:
        norm.momentum = usual[norm]
    return model.eval()


def images(batch: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, *IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def cameras(batch: int) -> Tensor:
    """All training cameras in turn, and the unknown one."""
    return torch.arange(batch) % (CAMERAS + 1) - 1


def loss_of(model: ReidModel, images_BCHW: Tensor) -> Tensor:
    """Loss of a training step; each identity has two or more images in 6."""
    batch = len(images_BCHW)
    output = model(images_BCHW, cameras(batch))
    return ReidLoss(model.loss_layout)(output, torch.arange(batch) // 2 % CLASSES)[0]


def scrambled(model: ReidModel) -> ReidModel:
    """In float64, with no weight left at a value that hides it (ones, zeros, equal slopes); the
    noise has no mean that would add up over the layers until one value outweighs all others."""
    model = model.double()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point():
                value.add_(0.2 * (torch.rand_like(value) - 0.5))
    return model
