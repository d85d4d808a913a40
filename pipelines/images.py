"""Encoded images: what is let in, and the one way they become pixels.

`intake` looks at a file once, at the door (ingest, or a query image): it refuses what would
silently give wrong colours or no picture at all, and turns the rarer formats into PNG without
loss, so that everything further in is a JPEG or PNG of 8-bit grey or RGB. `decode` then is the
same call for training, embedding and search.

Legend: H height, W width of the output in pixels.
"""

from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

SMALLEST_SIDE = 8
LARGEST_PIXELS = 100_000_000
EIGHT_BIT = {"RGB", "L"}
CONVERTED = {"1", "P", "LA", "PA", "RGBA", "RGBX", "La", "RGBa"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
Interpolation = Literal["bilinear", "bicubic"]
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class ImageError(ValueError):
    """An image that is not let in; the text is the reason and what to do."""


@dataclass(frozen=True)
class Intake:
    """An image that was let in."""

    data: bytes
    """JPEG or PNG, 8-bit grey or RGB, upright."""
    width: int
    height: int


def intake(data: bytes) -> Intake:
    """Check one encoded image and bring it into the stored form.

    JPEG and PNG files that are already in that form are kept byte for byte. Raises `ImageError`
    for anything that is no whole picture (text, cut files), that has more than 8 bits a channel or
    CMYK inks (their conversion needs a choice only the owner can make), or that is too small or
    too large to be a crop.
    """
    try:
        with Image.open(BytesIO(data)) as image:
            _check_form(image)
            image.load()
            upright = ImageOps.exif_transpose(image)
            keep = (
                image.format in ("JPEG", "PNG")
                and image.mode in EIGHT_BIT
                and image.getexif().get(0x0112, 1) == 1
            )
            if not keep:
                data = _as_png(upright)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError("not an image file") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: {error}") from error
    except (OSError, SyntaxError, EOFError, ValueError) as error:
        raise ImageError(f"cannot be decoded: {error}") from error
    return Intake(data=data, width=upright.width, height=upright.height)


def _check_form(image: Image.Image) -> None:
    width, height = image.size
    if min(width, height) < SMALLEST_SIDE:
        raise ImageError(f"{width}x{height} pixels; the smallest side accepted is {SMALLEST_SIDE}")
    if width * height > LARGEST_PIXELS:
        raise ImageError(f"{width}x{height} pixels; at most {LARGEST_PIXELS} are accepted")
    if image.mode == "CMYK":
        raise ImageError("CMYK colours; convert it to RGB")
    if image.mode not in EIGHT_BIT | CONVERTED:
        raise ImageError(
            f"pixel type {image.mode} (more than 8 bits a channel); convert it to 8-bit RGB"
        )


def _as_png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    mode = "L" if image.mode in ("1", "L") else "RGB"
    image.convert(mode).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def decode(
    data: bytes | pa.Buffer, size: tuple[int, int], interpolation: Interpolation
) -> NDArray[np.uint8]:
    """Pixels of an image that passed `intake`: uint8 [H, W, 3], resized with anti-aliasing.

    Raises `ImageError` if the bytes are no longer a picture.
    """
    height, width = size
    try:
        with Image.open(BytesIO(data)) as image:
            pixels = image.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, EOFError) as error:
        raise ImageError(f"cannot be decoded: {error}") from error
    if pixels.size != (width, height):
        pixels = pixels.resize((width, height), FILTERS[interpolation])
    return np.asarray(pixels)
