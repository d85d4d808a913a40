"""What is behind and before the people.

Each camera has a panorama, several pictures wide, of ground, walls and upright things; a picture is
a window of it at a random place. A process draws a panorama once and keeps it.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from pipelines.datasets.drawn.person import Colour
from pipelines.datasets.drawn.streams import Stream

PANORAMA = 8
"""Width of a panorama in pictures."""


def background(seed: int, camera: int, size: tuple[int, int], random: Stream) -> Image.Image:
    """A window of the camera's panorama; `size` is (width, height)."""
    wide = panorama(seed, camera, size)
    left = random.below(wide.width - size[0])
    return wide.crop((left, 0, left + size[0], size[1]))


@lru_cache(maxsize=64)
def panorama(seed: int, camera: int, size: tuple[int, int]) -> Image.Image:
    """All that a camera could see behind people, `PANORAMA` pictures of `size` wide."""
    random = Stream(seed, "scene", camera)
    width, height = PANORAMA * size[0], size[1]
    picture = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(picture)
    horizon = int(height * random.uniform(0.15, 0.70))
    for left in range(0, width, size[0]):
        draw.rectangle((left, 0, left + size[0], horizon), fill=_muted(random))
        draw.rectangle((left, horizon, left + size[0], height), fill=_muted(random))
    for _ in range(10 * PANORAMA // 2):
        x = random.below(width)
        half = int(size[0] * random.uniform(0.03, 0.45))
        top = int(horizon * random.uniform(-0.3, 0.8))
        draw.rectangle((x - half, top, x + half, horizon), fill=_muted(random))
    for _ in range(6):
        y = int(random.uniform(horizon, height))
        thick = 1 + random.below(max(1, height // 16))
        draw.rectangle((0, y, width, y + thick), fill=_muted(random))
    for _ in range(3 * PANORAMA):
        x = random.below(width)
        half = int(size[0] * random.uniform(0.02, 0.16))
        foot = int(random.uniform(horizon, height))
        tall = int(height * random.uniform(0.1, 0.8))
        draw.rectangle((x - half, foot - tall, x + half, foot), fill=_muted(random))
    grain = 9.0 * random.noise(height // 4 + 1, width // 4 + 1, 3)
    rough = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.5)), np.float32)
    rough = rough + np.repeat(np.repeat(grain, 4, 0), 4, 1)[:height, :width]
    return Image.fromarray(np.clip(rough, 0, 255).astype(np.uint8))


def occlude(picture: Image.Image, random: Stream) -> None:
    """Put something between the camera and the person: a post, a low wall or the edge of a van."""
    width, height = picture.size
    draw = ImageDraw.Draw(picture)
    colour = _muted(random)
    kind, place, extent = (random.uniform() for _ in range(3))
    if kind < 0.35:
        x, half = width * (0.2 + 0.6 * place), width * (0.03 + 0.05 * extent)
        draw.rectangle((x - half, 0, x + half, height), fill=colour)
    elif kind < 0.75:
        top = height * (0.68 + 0.22 * extent)
        draw.rectangle((0, top, width, height), fill=colour)
    else:
        reach = width * (0.15 + 0.25 * extent)
        left = 0.0 if place < 0.5 else width - reach
        draw.rectangle((left, height * 0.25, left + reach, height), fill=colour)


def _muted(random: Stream) -> Colour:
    """A colour of walls and streets: any lightness, little chroma."""
    base = random.uniform(45, 215)
    red, green, blue = (min(255, max(0, int(base + random.normal(20.0)))) for _ in range(3))
    return red, green, blue
