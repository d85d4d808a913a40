"""The top and its pattern, wrapped around the trunk so that front, side and back differ."""

from math import pi, sin

from PIL import Image, ImageDraw

from pipelines.datasets.drawn.body import Pixel, View
from pipelines.datasets.drawn.person import Person

STRIPE_ANGLE = pi / 5
HOOP = 0.062
"""Height of a hoop and its gap together, in body heights."""


def paint_cloth(
    canvas: Image.Image, person: Person, view: View, outline: list[tuple[Pixel, float]]
) -> None:
    """Paint a top whose `outline` lists (centre, half width) in pixels from neck to hem."""
    left = min(x - half for (x, _), half in outline)
    right = max(x + half for (x, _), half in outline)
    top, bottom = outline[0][0][1], outline[-1][0][1]
    x0, y0 = int(left) - 1, int(top) - 1
    size = (int(right) + 2 - x0, int(bottom) + 2 - y0)

    mask = Image.new("L", size, 0)
    sides = [(x - half - x0, y - y0) for (x, y), half in outline]
    sides += [(x + half - x0, y - y0) for (x, y), half in reversed(outline)]
    ImageDraw.Draw(mask).polygon(sides, fill=255)

    texture = Image.new("RGB", size, person.top)
    cloth = _Cloth(texture, person, view, outline[0][0][0] - x0, 0.5 * (right - left))
    PAINTERS[person.pattern](cloth)
    canvas.paste(texture, (x0, y0), mask)


class _Cloth:
    """A texture that is being painted: `x` is the middle of the trunk, `half` half its width."""

    def __init__(
        self, texture: Image.Image, person: Person, view: View, x: float, half: float
    ) -> None:
        self.draw = ImageDraw.Draw(texture)
        self.width, self.height = texture.size
        self.colour = person.second
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

    def hoops(self) -> None:
        """Rings around the trunk."""
        step = HOOP * self.unit
        for number in range(1, int(self.height / step) + 1):
            self.rows(number * step, (number + 0.5) * step)

    def stripes(self) -> None:
        """Lines from collar to hem."""
        for number in range(int(2 * pi / STRIPE_ANGLE)):
            self.panel(number * STRIPE_ANGLE, 0.27 * STRIPE_ANGLE, 0, self.height)

    def checks(self) -> None:
        """Rings and lines."""
        step = 1.6 * HOOP * self.unit
        for number in range(1, int(self.height / step) + 1):
            self.rows(number * step, (number + 0.3) * step)
        for number in range(int(pi / STRIPE_ANGLE)):
            self.panel(2 * number * STRIPE_ANGLE, 0.27 * STRIPE_ANGLE, 0, self.height)

    def halves(self) -> None:
        """The lower half in the second colour."""
        self.rows(0.5 * self.height, self.height)

    def band(self) -> None:
        """One broad ring over the chest."""
        self.rows(0.09 * self.unit, 0.19 * self.unit)

    def open_jacket(self) -> None:
        """A shirt of the second colour under an open front."""
        self.panel(0.0, 0.42, 0, self.height)

    def print(self) -> None:
        """A picture on chest and back."""
        for azimuth in (0.0, pi):
            self.panel(azimuth, 0.62, 0.08 * self.unit, 0.22 * self.unit)


PAINTERS = {
    "plain": _Cloth.plain,
    "hoops": _Cloth.hoops,
    "stripes": _Cloth.stripes,
    "checks": _Cloth.checks,
    "halves": _Cloth.halves,
    "band": _Cloth.band,
    "open_jacket": _Cloth.open_jacket,
    "print": _Cloth.print,
}
