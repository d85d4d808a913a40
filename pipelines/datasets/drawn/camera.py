"""A camera: where it looks from, what it does to colours, and how sharp it is."""

from dataclasses import dataclass
from functools import lru_cache
from math import exp, pi

import numpy as np
from PIL import Image, ImageFilter

from pipelines.datasets.drawn.streams import Stream

GREY = (0.299, 0.587, 0.114)
GOLDEN = 2.399963


@dataclass(frozen=True, kw_only=True)
class Camera:
    """What all pictures of a camera have in common."""

    yaw: float
    """Direction in which most people walk, in radians (0 towards the camera)."""
    pitch: float
    gain: tuple[float, float, float]
    """Colour cast: factor of red, green and blue."""
    saturation: float
    gamma: float
    contrast: float
    blur: float
    """Radius of the blur in pixels of the picture."""
    noise: float
    """Standard deviation of the sensor's noise in grey levels."""
    light: float
    """Slope of the light from left to right."""


@lru_cache(maxsize=256)
def camera(seed: int, number: int) -> Camera:
    """The camera with this number. Directions spread by the golden angle, so that they differ."""
    own = Stream(seed, "camera", number)
    first = Stream(seed, "first direction").uniform(0.0, 2 * pi)
    return Camera(
        yaw=(first + GOLDEN * number) % (2 * pi),
        pitch=own.uniform(0.05, 0.35),
        gain=(exp(own.normal(0.1)), exp(own.normal(0.1)), exp(own.normal(0.1))),
        saturation=own.uniform(0.70, 1.10),
        gamma=own.uniform(0.80, 1.25),
        contrast=own.uniform(0.80, 1.10),
        blur=own.uniform(0.2, 0.8),
        noise=own.uniform(2.0, 7.0),
        light=own.uniform(-0.25, 0.25),
    )


def expose(picture: Image.Image, by: Camera, random: Stream) -> np.ndarray:
    """What the camera makes of a scene: uint8 [height, width, 3]."""
    exposure = exp(random.normal(0.12))
    gains = [gain * exposure * exp(random.normal(0.04)) for gain in by.gain]
    picture = picture.convert("RGB", _saturate(by.saturation))
    picture = picture.point([level for gain in gains for level in _curve(by, gain)])
    picture = picture.filter(ImageFilter.GaussianBlur(by.blur * random.uniform(0.7, 1.4)))
    pixels = np.asarray(picture, np.float32)
    height, width = pixels.shape[:2]
    light = np.linspace(1.0 - by.light, 1.0 + by.light, width, dtype=np.float32)
    pixels = pixels * light[None, :, None] + by.noise * random.noise(height, width, 3)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _saturate(amount: float) -> tuple[float, ...]:
    rows = []
    for channel in range(3):
        row = [(1.0 - amount) * share for share in GREY]
        row[channel] += amount
        rows += [*row, 0.0]
    return tuple(rows)


def _curve(by: Camera, gain: float) -> list[int]:
    level = np.clip(gain * (np.arange(256) / 255.0), 0.0, 1.0) ** by.gamma
    level = 0.5 + by.contrast * (level - 0.5)
    return np.clip(np.rint(255.0 * level), 0, 255).astype(int).tolist()
