"""The top and its pattern, wrapped around the trunk so that front, side and back differ."""

from math import pi, sin

from PIL import Image, ImageDraw

from pipelines.datasets.drawn.body import Pixel, View
from pipelines.datasets.drawn.person import Colour


def paint_cloth(
    canvas: Image.Image,
    view: View,
    outline: list[tuple[Pixel, float]],
    colours: tuple[Colour, Colour],
    pattern: str,
) -> None:
    """Paint a garment whose `outline` lists (centre, half width) in pixels from top to hem."""
    left = min(x - half for (x, _), half in outline)
    right = max(x + half for (x, _), half in outline)
    top, bottom = outline[0][0][1], outline[-1][0][1]
    x0, y0 = int(left) - 1, int(top) - 1
    size = (int(right) + 2 - x0, int(bottom) + 2 - y0)

    mask = Image.new("L", size, 0)
    sides = [(x - half - x0, y - y0) for (x, y), half in outline]
    sides += [(x + half - x0, y - y0) for (x, y), half in reversed(outline)]
    ImageDraw.Draw(mask).polygon(sides, fill=255)

    texture = Image.new("RGB", size, colours[0])
    cloth = _Cloth(texture, colours[1], view, outline[0][0][0] - x0, 0.5 * (right - left))
    PAINTERS[pattern](cloth)
    canvas.paste(texture, (x0, y0), mask)


class _Cloth:
    """A texture that is being painted: `x` is the middle of the trunk, `half` half its width."""

    def __init__(
        self, texture: Image.Image, colour: Colour, view: View, x: float, half: float
    ) -> None:
        self.draw = ImageDraw.Draw(texture)
        self.width, self.height = texture.size
        self.colour = colour
        self.yaw = view.yaw
        self.unit = view.scale
        self.x = x
        self.half = half

    def rows(self, start: float, end: float) -> None:
        """A band around the trunk, in pixels from the collar."""
        self.draw.rectangle((0, start, self.width, end), fill=self.colour)

    def panel(self, azimuth: float, spread: float, start: float, end: float) -> None:
        """What is seen of the part within `spread` radians of an azimuth (0 front, pi back)."""
        middle = (azimuth + self.yaw + pi) % (2 * pi) - pi
        low, high = max(middle - spread, -pi / 2), min(middle + spread, pi / 2)
        if low < high:
            left, right = self.x + self.half * sin(low), self.x + self.half * sin(high)
            self.draw.rectangle((left, start, right, end), fill=self.colour)

    def plain(self) -> None:
        """One colour."""

    def hoops(self, step: float = 0.085) -> None:
        """Rings around the trunk; `step` is a ring and its gap in body heights."""
        step *= self.unit
        for number in range(int(self.height / step) + 1):
            self.rows((number + 0.5) * step, (number + 1) * step)

    def fine_hoops(self) -> None:
        """Narrow rings."""
        self.hoops(0.048)

    def stripes(self, count: int = 8) -> None:
        """Lines from collar to hem; `count` of them around the trunk."""
        step = 2 * pi / count
        for number in range(count):
            self.panel(number * step, 0.25 * step, 0, self.height)

    def fine_stripes(self) -> None:
        """Narrow lines."""
        self.stripes(14)

    def checks(self) -> None:
        """Rings and lines."""
        step = 0.11 * self.unit
        for number in range(int(self.height / step) + 1):
            self.rows((number + 0.35) * step, (number + 0.65) * step)
        for number in range(7):
            self.panel(number * 2 * pi / 7, 0.13, 0, self.height)

    def diagonals(self) -> None:
        """Slanted lines."""
        step = 0.10 * self.unit
        width = int(0.45 * step)
        for number in range(int((self.height + self.width) / step) + 1):
            end = number * step
            self.draw.line((0, end, self.width, end - self.width), fill=self.colour, width=width)

    def dots(self) -> None:
        """Large dots in rows."""
        step, radius = 0.075 * self.unit, 0.022 * self.unit
        for row in range(int(self.height / step) + 1):
            y = (row + 0.5) * step
            for column in range(-3, 4):
                x = self.x + (column + 0.5 * (row % 2)) * step
                self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), self.colour)

    def halves(self) -> None:
        """The lower half in the second colour."""
        self.rows(0.5 * self.height, self.height)

    def band(self) -> None:
        """One broad ring over the chest."""
        self.rows(0.09 * self.unit, 0.19 * self.unit)

    def open_jacket(self) -> None:
        """A shirt of the second colour under an open front."""
        self.panel(0.0, 0.42, 0, self.height)


PAINTERS = {
    "plain": _Cloth.plain,
    "hoops": _Cloth.hoops,
    "fine_hoops": _Cloth.fine_hoops,
    "stripes": _Cloth.stripes,
    "fine_stripes": _Cloth.fine_stripes,
    "checks": _Cloth.checks,
    "diagonals": _Cloth.diagonals,
    "dots": _Cloth.dots,
    "halves": _Cloth.halves,
    "band": _Cloth.band,
    "open_jacket": _Cloth.open_jacket,
}
