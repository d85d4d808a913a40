"""Training-time changes of the pixels: horizontal flip, and zero padding with a random crop back.

Random erasing follows on the device, after normalisation (`pipelines.engine.erasing`). Every draw
is a function of (seed, step, position in the global batch), so it does not matter which worker
makes it.

Legend: B batch, H height, W width.
"""

from dataclasses import dataclass

import numpy as np

from pipelines.counter_random import uniform


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What happens before the image travels to the device."""

    flip: float
    """Probability of a horizontal flip."""
    pad: int
    """Zero padding in pixels before the crop."""


def flip_and_crop(
    image_BHW3: np.ndarray, augmentation: Augmentation, seed: int, step: int, position_B: np.ndarray
) -> np.ndarray:
    """Augmented copy of a uint8 batch, same shape."""
    pad, (_, height, width, _) = augmentation.pad, image_BHW3.shape
    flip_B = uniform("flip", seed, step, position_B) < augmentation.flip
    top_B = (uniform("crop top", seed, step, position_B) * (2 * pad + 1)).astype(np.int64) - pad
    left_B = (uniform("crop left", seed, step, position_B) * (2 * pad + 1)).astype(np.int64) - pad
    out_BHW3 = np.zeros_like(image_BHW3)
    for out, image, flip, top, left in zip(
        out_BHW3, image_BHW3, flip_B, top_B, left_B, strict=True
    ):
        source = image[:, ::-1] if flip else image
        rows, from_rows = _overlap(int(top), height)
        columns, from_columns = _overlap(int(left), width)
        out[rows, columns] = source[from_rows, from_columns]
    return out_BHW3


def _overlap(shift: int, size: int) -> tuple[slice, slice]:
    """Target and source range when the window starts at `shift` of an image padded with zeros."""
    low, high = max(0, -shift), min(size, size - shift)
    return slice(low, high), slice(low + shift, high + shift)
