"""Random erasing: one box of noise in some of the training images.

Zhong et al., "Random erasing data augmentation", AAAI 2020, in the form FusionReID trains with:
after normalisation, standard normal noise for every pixel and channel, one box an image, its area
and log-aspect uniform, at most ten tries for a box that is smaller than the image in both
directions.

Everything is a pure function of (seed, step, position in the global batch): one worker or eight
see the same pixels. The noise comes from one torch generator an erased image. For 64 erased images
of 256 x 128 (1.08 million numbers, one core) that takes 4.8 ms, and hashing counters for all boxes
at once with a Box-Muller transform takes 5.0 ms in NumPy and 9.7 ms in torch, so the loop stays.

Shapes: B batch, C channels, H height, W width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.counter_random import generator_seed, uniform
from pipelines.engine.inputs import to_device

_TRIES = 10


@dataclass(frozen=True, kw_only=True)
class ErasingConfig:
    """How much is erased."""

    probability: float = 0.5
    """Share of the images that get a box."""
    area: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest share of the image that the box covers."""
    aspect: float = 0.3
    """Height by width of the box is drawn between this and its inverse; in (0, 1]."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability lies in [0, 1], got {self.probability}")
        if not 0 <= self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area is an ascending pair in [0, 1], got {self.area}")
        if not 0 < self.aspect <= 1:
            raise ValueError(f"aspect lies in (0, 1], got {self.aspect}")


def erase_boxes(
    seed: int,
    step: int,
    positions_B: NDArray[np.int64],
    height: int,
    width: int,
    *,
    probability: float,
    area: tuple[float, float],
    aspect: float,
) -> NDArray[np.int64]:
    """The box of every image: int64 [B, 4] of top, left, height, width in pixels.

    An image without a box has height and width 0. `positions_B` int64 [B] are the images' places in
    the global batch of this step; the other arguments are `ErasingConfig`'s.
    """
    positions_B1 = positions_B[:, None]
    tries_1T = np.arange(_TRIES)[None]

    def draw(name: str) -> NDArray[np.float64]:
        return uniform(f"erasing/{name}", seed, step, positions_B1, tries_1T)

    area_BT = height * width * (area[0] + draw("area") * (area[1] - area[0]))
    aspect_BT = np.exp(np.log(aspect) * (1 - 2 * draw("aspect")))
    height_BT = np.rint(np.sqrt(area_BT * aspect_BT)).astype(np.int64)
    width_BT = np.rint(np.sqrt(area_BT / aspect_BT)).astype(np.int64)
    fits_BT = (height_BT < height) & (width_BT < width) & (height_BT > 0) & (width_BT > 0)

    first_B1 = fits_BT.argmax(axis=1)[:, None]
    wanted_B = uniform("erasing/wanted", seed, step, positions_B) < probability
    erased_B1 = wanted_B[:, None] & fits_BT.any(axis=1)[:, None]
    size_B2 = np.concatenate(
        [np.take_along_axis(size_BT, first_B1, axis=1) for size_BT in (height_BT, width_BT)], axis=1
    )
    place_B2 = uniform("erasing/place", seed, step, positions_B1, np.arange(2)[None])
    room_B2 = np.array([height, width]) - size_B2 + 1
    corner_B2 = np.floor(place_B2 * room_B2).astype(np.int64)
    return np.where(erased_B1, np.concatenate([corner_B2, size_B2], axis=1), 0)


def apply_erasing(
    images_BCHW: Tensor,
    boxes_B4: NDArray[np.int64],
    seed: int,
    step: int,
    positions_B: NDArray[np.int64],
) -> Tensor:
    """Fill the boxes with N(0, 1) noise, in place, and return the images.

    Args:
        images_BCHW: normalised float32 images on any device; the noise is drawn on the host, so
            that it does not depend on the device, and crosses in one copy.
        boxes_B4: the boxes of `erase_boxes`.
        seed: the run's seed.
        step: the step of the global batch.
        positions_B: int64 [B], the images' places in the global batch.
    """
    channels = images_BCHW.shape[1]
    sizes_B = boxes_B4[:, 2] * boxes_B4[:, 3] * channels
    erased = np.flatnonzero(sizes_B)
    ends = np.cumsum(sizes_B[erased])
    starts = ends - sizes_B[erased]
    pieces = list(zip(erased.tolist(), starts.tolist(), ends.tolist(), strict=True))
    noise = torch.empty(int(sizes_B.sum()), dtype=torch.float32)
    for image, start, end in pieces:
        generator = torch.Generator()
        generator.manual_seed(generator_seed("erasing/noise", seed, step, int(positions_B[image])))
        torch.randn(end - start, generator=generator, out=noise[start:end])
    noise = to_device(noise, images_BCHW.device)
    for image, start, end in pieces:
        top, left, height, width = boxes_B4[image].tolist()
        noise_CHW = noise[start:end].view(height, width, channels).permute(2, 0, 1)
        images_BCHW[image, :, top : top + height, left : left + width] = noise_CHW
    return images_BCHW
