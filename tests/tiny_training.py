"""A small network with batch norm and dropout, its loss and its data, to test the engine with.

Shapes: B batch, C channels or identities, H height, W width, D embedding dim.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pipelines.counter_random import counter_hash
from pipelines.engine import ErasingConfig, ScheduleConfig, TrainState, build_optimizer
from reid_models.output import ReidOutput

IDENTITIES = 4
HEIGHT, WIDTH = 16, 8


class TinyNetwork(nn.Module):
    """Convolution, batch norm, pooling, a camera vector, dropout and two heads."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.camera = nn.Embedding(2, channels)
        self.dropout = nn.Dropout(0.2)
        self.necks = nn.ModuleDict({k: nn.BatchNorm1d(channels) for k in ("first", "second")})
        self.classifiers = nn.ModuleDict(
            {k: nn.Linear(channels, IDENTITIES) for k in ("first", "second")}
        )

    def forward(self, images_BCHW: Tensor, cameras_B: Tensor) -> ReidOutput:
        maps_BCHW = self.norm(self.convolution(images_BCHW)).relu()
        feature_BD = self.dropout(maps_BCHW.mean(dim=(2, 3)) + self.camera(cameras_B))
        logits = {k: self.classifiers[k](self.necks[k](feature_BD)) for k in self.necks}
        return ReidOutput(feature_BD, logits, dict.fromkeys(logits, feature_BD))


def tiny_loss(output: ReidOutput, labels_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of the heads and a small pull towards the origin."""
    heads = output.logits.values()
    identity = torch.stack([cross_entropy(x.float(), labels_B) for x in heads]).sum()
    size = 0.01 * output.embedding.float().square().mean()
    return identity + size, {"id": identity, "size": size}


def tiny_state(*, optimizer: str = "sgd", lr: float = 0.05, **changes: Any) -> TrainState:
    """A fresh run; the same weights every time."""
    torch.manual_seed(0)
    model = changes.pop("model", None) or TinyNetwork()
    settings: dict[str, Any] = {
        "schedule": ScheduleConfig(
            epochs=5, steps_per_epoch=4, warmup_epochs=1, warmup_start_lr=1e-3, min_lr=1e-4
        ),
        "loss": tiny_loss,
        "seed": 3,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "erasing": ErasingConfig(),
    }
    return TrainState(
        model=model,
        optimizer=build_optimizer(
            model,
            name=optimizer,  # type: ignore[arg-type]
            lr=lr,
            momentum=0.9,
            weight_decay=1e-3,
            bias_lr_factor=2.0,
        ),
        **{**settings, **changes},
    )


def tiny_batch(step: int, positions: range = range(16)) -> dict[str, NDArray[Any]]:
    """Part of the global batch of a step: noise, brightened by identity in one channel or none."""
    position_B = np.array(positions, dtype=np.int64)
    label_B = position_B % IDENTITIES
    pixel = np.arange(HEIGHT * WIDTH * 3)
    noise = counter_hash("tiny", step, position_B[:, None], pixel[None]) >> np.uint64(57)
    image_BHWC = noise.reshape(-1, HEIGHT, WIDTH, 3).astype(np.uint8)
    for channel in range(3):
        image_BHWC[label_B == channel, :, :, channel] += 100
    camera_B = position_B // IDENTITIES % 2
    return {"image": image_BHWC, "label": label_B, "camera": camera_B, "position": position_B}
