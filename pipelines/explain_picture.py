"""What `pipelines.explain` saw, as one picture: the image, then a heat map a panel.

A heat map lies over the greyed image. Its colours run from violet to yellow in equal steps of
perceived lightness (OKLab, Bjoern Ottosson 2020), from the least to the greatest value of that
panel: every panel has its own scale, written below it.

Legend: H W size of the drawn image in pixels, h w rows and columns of a grid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipelines.contact_sheet import GAP, INK, LINE, NEUTRAL, PAPER
from pipelines.errors import UserError
from pipelines.explain import Explained, Heat
from pipelines.store import Folder

BOX = (336, 384)
"""Greatest width and height of the drawn image."""
CELL_WIDTH = 200
COLUMNS = 7
TITLE_LINES = 2
SCALE_HEIGHT = 10
HEADING = 16
TEXT = 13
TINT = 0.62
"""Share of the colour over the grey image."""
FLAT = 0.1
"""Range, as a share of the mean, up to which the colours show hardly anything."""


@dataclass(frozen=True, kw_only=True)
class _Panel:
    title: str
    picture: Image.Image
    scale: tuple[float, float] | None
    caption: str


def check_output(path: Path, inputs: Sequence[Path] = ()) -> None:
    """Refuse a place where the picture could not be written, or lies one of the images that it is
    made of, before anything is computed."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file")
        if path.suffix.lower() != ".png":
            raise UserError(f"{path}: the picture is a PNG; give it a name that ends with .png")
        if not path.absolute().parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.absolute().parent}; make it first")
        if path.exists() and any(other.exists() and path.samefile(other) for other in inputs):
            raise UserError(f"{path}: is the image itself; give the picture another name")
    except OSError as error:
        raise _unwritable(path, error) from error


def draw_explanation(path: Path, explained: Explained, *, heading: Sequence[str]) -> None:
    """Write the picture as PNG; it appears only when it is complete.

    Args:
        path: file to write.
        explained: what to draw.
        heading: lines above the panels.

    Raises:
        UserError: the file cannot be written.
    """
    check_output(path)
    sheet = _sheet(_panels(explained), heading)
    try:
        with Folder.open(str(path.absolute().parent)).write(path.name) as stream:
            sheet.save(stream, format="PNG")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path}: cannot be written ({error.strerror or error}); name another file with --output"
    )


def _panels(explained: Explained) -> list[_Panel]:
    height, width = explained.pixels_HW3.shape[:2]
    size = _fitted(width, height)
    inputs = [("Input", explained.pixels_HW3)]
    if explained.other_HW3 is not None:
        inputs.append(("Compared with", explained.other_HW3))
    panels = [
        _Panel(
            title=title,
            picture=Image.fromarray(pixels_HW3).resize(size, Image.Resampling.BICUBIC),
            scale=None,
            caption=f"{height} x {width} pixels",
        )
        for title, pixels_HW3 in inputs
    ]
    grey = panels[0].picture.convert("L")
    return panels + [_heat_panel(heat, grey) for heat in explained.heats]


def _heat_panel(heat: Heat, grey: Image.Image) -> _Panel:
    values_hw = heat.values_hw
    low, high = float(values_hw.min()), float(values_hw.max())
    rows, columns = values_hw.shape
    mean = float(values_hw.mean())
    is_flat = high - low <= FLAT * abs(mean)
    remark = "nearly even" if is_flat else f"mean {_short(mean)}"
    return _Panel(
        title=heat.title,
        picture=_overlaid(grey, values_hw, low, high),
        scale=(low, high),
        caption=f"grid {rows} x {columns}, {remark}",
    )


def _overlaid(grey: Image.Image, values_hw: np.ndarray, low: float, high: float) -> Image.Image:
    """The grey image under the colours of the values, which are enlarged smoothly."""
    share_hw = (values_hw - low) / (high - low) if high > low else np.zeros_like(values_hw)
    enlarged = Image.fromarray(share_hw.astype(np.float32)).resize(
        grey.size, Image.Resampling.BICUBIC
    )
    share_HW = np.asarray(enlarged).clip(0, 1)
    # kept dark and dull: a white coat must not look like a high value
    grey_HW1 = 30 + 0.5 * np.asarray(grey, dtype=np.float32)[:, :, None]
    colour_HW3 = _ramp()[np.round(share_HW * 255).astype(np.intp)]
    mixed_HW3 = TINT * colour_HW3 + (1 - TINT) * grey_HW1
    return Image.fromarray(mixed_HW3.round().astype(np.uint8))


@cache
def _ramp() -> np.ndarray:
    """256 colours [256, 3] in sRGB, 0 to 255: lightness rises evenly, the hue turns from violet
    over red to yellow."""
    share = np.linspace(0, 1, 256)
    lightness = 0.22 + 0.72 * share
    chroma = 0.11 + 0.09 * np.sin(np.pi * share)
    hue = np.radians(282 + 176 * share)
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = (to_linear @ cones**3).clip(0, 1)
    encoded = np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    return (255 * encoded.T).astype(np.float32)


def _sheet(panels: Sequence[_Panel], heading: Sequence[str]) -> Image.Image:
    width, height = panels[0].picture.size
    rows = -(-len(panels) // COLUMNS)
    columns = -(-len(panels) // rows)
    cell = (
        max(width, CELL_WIDTH) + GAP,
        TITLE_LINES * LINE + height + SCALE_HEIGHT + 2 * LINE + 2 * GAP,
    )
    full_width = columns * cell[0] + GAP
    font = ImageFont.load_default(size=HEADING)
    lines = [line for text in heading for line in _wrapped(text, font, full_width - 2 * GAP)]
    top = GAP + len(lines) * (HEADING + 6) + GAP // 2
    sheet = Image.new("RGB", (full_width, top + rows * cell[1]), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        draw.text((GAP, GAP + number * (HEADING + 6)), line, fill=INK, font=font)
    for number, panel in enumerate(panels):
        y, x = divmod(number, columns)
        _draw(sheet, draw, panel, (GAP + x * cell[0], top + y * cell[1]), cell[0] - GAP)
    return sheet


def _draw(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    panel: _Panel,
    corner: tuple[int, int],
    room: int,
) -> None:
    font = ImageFont.load_default(size=TEXT)
    x, y = corner
    lines = _wrapped(panel.title, font, room)[:TITLE_LINES]
    for line, text in enumerate(lines):
        # titles stand on the picture, whether they have one line or two
        draw.text((x, y + (TITLE_LINES - len(lines) + line) * LINE), text, fill=INK, font=font)
    y += TITLE_LINES * LINE + 4
    sheet.paste(panel.picture, (x, y))
    y += panel.picture.height + 6
    if panel.scale is not None:
        width = panel.picture.width
        bar = Image.fromarray(_ramp().round().astype(np.uint8)[None]).resize((width, SCALE_HEIGHT))
        sheet.paste(bar, (x, y))
        y += SCALE_HEIGHT + 2
        least, most = panel.scale
        low, high = "0" if abs(least) < abs(most) / 1000 else _short(least), _short(most)
        draw.text((x, y), low, fill=INK, font=font)
        draw.text((x + width, y), high, fill=INK, font=font, anchor="ra")
        y += LINE
    draw.text((x, y), panel.caption, fill=NEUTRAL, font=font)


def _fitted(width: int, height: int) -> tuple[int, int]:
    factor = min(BOX[0] / width, BOX[1] / height)
    return max(1, round(factor * width)), max(1, round(factor * height))


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: int) -> list[str]:
    """Lines of at most `room` pixels; a word that is longer, as names of files are, is cut."""
    lines = [""]
    for word in text.split():
        rest = word
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= room:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        while font.getlength(rest) > room:
            fits = [n for n in range(2, len(rest)) if font.getlength(rest[:n]) <= room]
            cut = max(fits, default=1)
            lines[-1:] = [rest[:cut], ""]
            rest = rest[cut:]
        lines[-1] = rest
    return lines


def _short(value: float) -> str:
    return f"{value:.3g}"
