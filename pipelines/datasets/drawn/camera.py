"""A camera: where it looks from, what it does to colours, and how sharp it is."""

from dataclasses import dataclass
from functools import lru_cache
from math import pi

import numpy as np
from PIL import Image, ImageFilter

from pipelines.datasets.drawn.streams import Subject, stream

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
    random = stream(seed, Subject.CAMERA, number)
    start = float(stream(seed, Subject.CAMERA).random())
    gain = np.exp(random.normal(0.0, 0.10, 3))
    rest = random.random(7).tolist()
    return Camera(
        yaw=(2 * pi * start + GOLDEN * number) % (2 * pi),
        pitch=0.05 + 0.30 * rest[0],
        gain=(float(gain[0]), float(gain[1]), float(gain[2])),
        saturation=0.70 + 0.4 * rest[1],
        gamma=0.80 + 0.45 * rest[2],
        contrast=0.80 + 0.3 * rest[3],
        blur=0.2 + 0.6 * rest[4],
        noise=2.0 + 5.0 * rest[5],
        light=0.5 * (rest[6] - 0.5),
    )


def expose(picture: Image.Image, by: Camera, random: np.random.Generator) -> np.ndarray:
    """What the camera makes of a scene: uint8 [height, width, 3]."""
    exposure, *balance = np.exp(random.normal(0.0, (0.12, 0.04, 0.04, 0.04))).tolist()
    gains = [gain * exposure * shift for gain, shift in zip(by.gain, balance, strict=True)]
    picture = picture.convert("RGB", _saturate(by.saturation))
    picture = picture.point([level for gain in gains for level in _curve(by, gain)])
    picture = picture.filter(ImageFilter.GaussianBlur(by.blur * float(random.uniform(0.7, 1.4))))
    pixels = np.asarray(picture, np.float32)
    height, width = pixels.shape[:2]
    light = np.linspace(1.0 - by.light, 1.0 + by.light, width, dtype=np.float32)
    noise = random.standard_normal((height, width, 3), np.float32)
    noise *= by.noise
    pixels = pixels * light[None, :, None] + noise
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
