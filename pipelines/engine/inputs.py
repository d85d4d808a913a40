"""From decoded images to the tensor that a network sees.

Training, embedding and search all pass through here, so that one image always gives the same input.
Images travel as uint8, a quarter of the bytes, and become floats where the network runs.

Shapes: B batch, H height, W width, C channels.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """The tensor on this device, without making the host wait for the work queued there.

    Host memory that is not pinned is copied to pinned memory first: CUDA would otherwise copy it
    only after everything before it in the stream is done.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def to_model_input(
    images_BHWC: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str | None = None,
) -> Tensor:
    """Normalised pixels `(x / 255 - mean) / std`, float32 [B, C, H, W] in channels-last memory.

    Args:
        images_BHWC: uint8 [B, H, W, C].
        mean: mean of the pixel values in [0, 1], one a channel.
        std: standard deviation of the pixel values in [0, 1], one a channel.
        device: where the arithmetic is done and the result lies; by default where the images lie.

    Raises:
        ValueError: for images of another dtype or shape.
    """
    if images_BHWC.dtype != torch.uint8 or images_BHWC.ndim != 4:
        raise ValueError(
            f"images are uint8 [B, H, W, C], got {images_BHWC.dtype} {list(images_BHWC.shape)}"
        )
    if not images_BHWC.shape[-1] == len(mean) == len(std):
        raise ValueError(
            f"images of shape {list(images_BHWC.shape)} need one mean and one std a channel, "
            f"got {len(mean)} and {len(std)}"
        )
    target = images_BHWC.device if device is None else torch.device(device)
    pixels_BCHW = to_device(images_BHWC, target).permute(0, 3, 1, 2)
    pixels_BCHW = pixels_BCHW.to(torch.float32, memory_format=torch.channels_last)
    pixels_BCHW.div_(255.0)
    pixels_BCHW.sub_(_per_channel(tuple(mean), target))
    return pixels_BCHW.div_(_per_channel(tuple(std), target))
