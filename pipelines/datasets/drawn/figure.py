"""A person in a pose, painted limb by limb from far to near."""

from collections.abc import Callable
from functools import partial
from math import cos, sin

from PIL import Image, ImageDraw

from pipelines.datasets.drawn.body import (
    HEAD_HEIGHT,
    HEAD_RADIUS,
    NECK_HEIGHT,
    SHOULDER_HEIGHT,
    TRUNK_DEPTH,
    Limb,
    Pixel,
    Point,
    View,
    walk,
)
from pipelines.datasets.drawn.clothes import paint_cloth
from pipelines.datasets.drawn.person import Colour, Person

FAR_SHADE = 0.80
SHADOW = 0.62


def paint_figure(canvas: Image.Image, person: Person, view: View, phase: float) -> None:
    """Draw the person onto the picture, with the shadow under the feet.

    Parts are painted in the order of their distance, so that the far leg and arm lie behind the
    trunk and a rucksack lies before or behind it.
    """
    painter = _Painter(canvas, person, view, phase)
    painter.shadow()
    parts: list[tuple[float, Callable[[], None]]] = [(0.0, painter.trunk), (0.004, painter.head)]
    for number, (leg, arm) in enumerate(zip(painter.body.legs, painter.body.arms, strict=True)):
        near = view.depth(arm.root)
        parts.append((-0.02 + 0.1 * view.depth(leg.root), partial(painter.leg, number)))
        parts.append((near, partial(painter.arm, number)))
        if number == 0 and person.bag in ("handbag", "shoulder_bag"):
            parts.append((near + 0.001, painter.hand_held))
    if person.bag == "backpack":
        parts.append((-0.1 * cos(view.yaw), painter.backpack))
    for _, paint in sorted(parts, key=lambda part: part[0]):
        paint()


class _Painter:
    """One figure being painted."""

    def __init__(self, canvas: Image.Image, person: Person, view: View, phase: float) -> None:
        self.canvas = canvas
        self.draw = ImageDraw.Draw(canvas)
        self.person = person
        self.view = view
        self.body = walk(person, phase)

    def shadow(self) -> None:
        """A dark flat ellipse on the ground."""
        reach = self.view.scale * (0.10 + 0.25 * self.person.stride * abs(sin(self.view.yaw)))
        flat = max(1.0, self.view.scale * (0.015 + 0.12 * self.view.pitch))
        x, y = self.view.x, self.view.ground
        box = (int(x - reach), int(y - flat), int(x + reach), int(y + flat))
        under = self.canvas.crop(box)
        mask = Image.new("L", under.size, 0)
        ImageDraw.Draw(mask).ellipse((0, 0, under.width - 1, under.height - 1), fill=255)
        self.canvas.paste(under.point(lambda value: value * SHADOW), box, mask)

    def leg(self, number: int) -> None:
        """Skin, then what the trousers, shorts or skirt cover, then the shoe."""
        person, limb = self.person, self.body.legs[number]
        shade = self._shade(limb)
        wide = 1.35 if person.lower_cut == "wide_trousers" else 1.0
        thick, thin = 0.052 * person.build, 0.030 * person.build
        cloth = _shaded(person.lower, shade)
        bare = person.lower_cut in ("shorts", "skirt")
        below = _shaded(person.skin, shade) if bare else cloth
        low = thin if bare else thin * wide * 1.1
        self._bone(limb.middle, limb.end, below, 0.036 * person.build * wide, low)
        above = below if person.lower_cut == "skirt" else cloth
        self._bone(limb.root, limb.middle, above, thick, 0.042 * person.build * wide)
        if person.lower_cut != "skirt":
            self._leg_pattern(limb, _shaded(person.lower_second, shade), bare)
        heel = (limb.end[0], limb.end[1] - 0.01, limb.end[2] - 0.02)
        self._bone(heel, limb.tip, _shaded(person.shoes, shade), 0.026, 0.020)

    def _leg_pattern(self, limb: Limb, colour: Colour, bare: bool) -> None:
        """What the trousers or shorts have in their second colour."""
        person = self.person
        wide = (1.35 if person.lower_cut == "wide_trousers" else 1.0) * person.build
        if person.lower_pattern == "side_stripe":
            self._bone(limb.root, limb.middle, colour, 0.016, 0.016)
            if not bare:
                self._bone(limb.middle, limb.end, colour, 0.016, 0.014)
        elif person.lower_pattern == "two_tone" and not bare:
            self._bone(limb.middle, limb.end, colour, 0.038 * wide, 0.035 * wide)
        elif person.lower_pattern == "hoops":
            bones = [(limb.root, limb.middle, 0.050, 0.042)]
            if not bare:
                bones.append((limb.middle, limb.end, 0.037, 0.033 * wide / person.build))
            for start, end, thick, thin in bones:
                for share in (0.30, 0.75):
                    ring = thick + share * (thin - thick)
                    low, high = _between(start, end, share), _between(start, end, share + 0.2)
                    self._ring(low, high, colour, ring * wide)

    def arm(self, number: int) -> None:
        """The arm, and the share of it that the sleeve covers."""
        person, limb = self.person, self.body.arms[number]
        shade = self._shade(limb)
        skin = _shaded(person.skin, shade)
        cloth = _shaded(person.second if person.second_sleeves else person.top, shade)
        upper, lower = 0.034 * person.build, 0.024 * person.build
        self._bone(limb.middle, limb.tip, skin, lower, 0.018)
        self._bone(limb.root, limb.middle, skin, upper * 0.9, lower)
        if person.sleeve > 0:
            end = _between(limb.root, limb.middle, min(1.0, person.sleeve / 0.55))
            self._bone(limb.root, end, cloth, upper * 1.1, upper)
        if person.sleeve == 1.0:
            self._bone(limb.middle, limb.end, cloth, upper, lower * 1.1)

    def trunk(self) -> None:
        """Skirt or hips, the top with its pattern, and the straps of a bag."""
        person, view = self.person, self.view
        self._neck()
        if person.lower_cut == "skirt":
            pattern = "hoops" if person.lower_pattern == "hoops" else "plain"
            outline = [(0.58, person.hip), (0.28, person.hip * 1.55)]
            colours = (person.lower, person.lower_second)
            paint_cloth(self.canvas, view, self._outline(outline), colours, pattern)
        else:
            low = person.hip_height - 0.045
            self._cloth([(0.58, person.hip), (low, person.hip * 0.95)], person.lower)
        flare = 1.0 + max(0.0, 0.5 - person.hem)
        outline = [
            (NECK_HEIGHT - 0.005, 0.045),
            (SHOULDER_HEIGHT + 0.012, person.shoulder * 0.93),
            (SHOULDER_HEIGHT - 0.035, person.shoulder),
            (0.62, 0.5 * (person.shoulder + person.hip) * 0.98),
            (person.hem, person.hip * 1.08 * flare),
        ]
        colours = (person.top, person.second)
        paint_cloth(self.canvas, view, self._outline(outline), colours, person.pattern)
        if person.bag == "backpack" and cos(view.yaw) > 0.25:
            for side in (-0.55, 0.55):
                strap = (side * person.shoulder, SHOULDER_HEIGHT, 0.05)
                end = (side * person.shoulder * 1.1, 0.62, 0.07)
                self._bone(strap, end, person.bag_colour, 0.012, 0.012)
        if person.bag == "shoulder_bag":
            front = 0.08 if cos(view.yaw) > 0 else -0.08
            start = (-0.7 * person.shoulder, SHOULDER_HEIGHT, front)
            end = (1.15 * person.hip, 0.52, 0.3 * front)
            self._bone(start, end, person.bag_colour, 0.012, 0.012)

    def head(self) -> None:
        """Hair behind, the face where it can be seen, and what is on top of it."""
        person, view = self.person, self.view
        toward = cos(view.yaw)
        radius = HEAD_RADIUS * (1.0 + 0.1 * (person.build - 1.0))
        hair = person.skin if person.hair_style == "bald" else person.hair
        if person.hair_style == "long":
            for height, size in ((0.02, 0.95), (-0.05, 0.9), (-0.10, 0.75)):
                self._ball((0.0, HEAD_HEIGHT + height, -0.03), radius * size, hair)
        self._ball((0.0, HEAD_HEIGHT, 0.0), radius, hair, tall=1.15)
        face = (0.0, HEAD_HEIGHT - 0.014, 0.55 * radius)
        if toward > -0.35:
            width = radius * min(0.86, 0.62 + 0.35 * toward)
            self._ball(face, width, person.skin, tall=0.80 * radius / width)
        if person.hair_style == "bun":
            self._ball((0.0, HEAD_HEIGHT + 0.05, -0.05), 0.52 * radius, hair)
        if person.hair_style == "cap":
            self._cap(radius)

    def hand_held(self) -> None:
        """A bag in the left hand or at the left hip."""
        person = self.person
        hand = self.body.arms[0].tip
        if person.bag == "handbag":
            centre = (hand[0], hand[1] - 0.075, hand[2])
        else:
            centre = (1.35 * person.hip * person.build, 0.50, -0.02)
        self._box(centre, 0.030, 0.075, 0.058, person.bag_colour)

    def backpack(self) -> None:
        """A rucksack on the back."""
        person = self.person
        self._box((0.0, 0.70, -0.115), 0.095, 0.045, 0.115, person.bag_colour)
        if cos(self.view.yaw) < 0.2:
            pocket = _shaded(person.bag_colour, 0.7)
            self._box((0.0, 0.655, -0.15), 0.060, 0.014, 0.040, pocket)

    def _neck(self) -> None:
        self._bone((0, NECK_HEIGHT - 0.02, 0), (0, HEAD_HEIGHT, 0), self.person.skin, 0.032, 0.03)

    def _cap(self, radius: float) -> None:
        view, colour = self.view, self.person.second
        x, y = view.pixel((0.0, HEAD_HEIGHT + 0.012, 0.0))
        r = view.scale * radius * 1.08
        self.draw.pieslice((x - r, y - 1.05 * r, x + r, y + 0.9 * r), 180, 360, fill=colour)
        edge = (0.0, HEAD_HEIGHT + 0.012, radius)
        self._bone(edge, (0.0, HEAD_HEIGHT + 0.005, 1.7 * radius), colour, 0.02, 0.016)

    def _shade(self, limb: Limb) -> float:
        return FAR_SHADE if self.view.depth(limb.root) < -0.03 else 1.0

    def _outline(self, levels: list[tuple[float, float]]) -> list[tuple[Pixel, float]]:
        """Centre and half width in pixels of an upright garment at (height, half width)."""
        build, view = self.person.build, self.view
        return [
            (view.pixel((0.0, height, 0.0)), view.half_width(w * build, w * build * TRUNK_DEPTH))
            for height, w in levels
        ]

    def _cloth(self, levels: list[tuple[float, float]], colour: Colour) -> None:
        outline = self._outline(levels)
        left = [(x - half, y) for (x, y), half in outline]
        right = [(x + half, y) for (x, y), half in reversed(outline)]
        self.draw.polygon(left + right, fill=colour)

    def _bone(self, start: Point, end: Point, colour: Colour, wide: float, thin: float) -> None:
        """A tapered limb with round ends; `wide` and `thin` are its radii at start and end."""
        (ax, ay), (bx, by) = self.view.pixel(start), self.view.pixel(end)
        a, b = self.view.scale * wide, self.view.scale * thin
        length = max(1e-6, ((bx - ax) ** 2 + (by - ay) ** 2) ** 0.5)
        nx, ny = (ay - by) / length, (bx - ax) / length
        self.draw.polygon(
            [
                (ax + nx * a, ay + ny * a),
                (bx + nx * b, by + ny * b),
                (bx - nx * b, by - ny * b),
                (ax - nx * a, ay - ny * a),
            ],
            fill=colour,
        )
        self.draw.ellipse((ax - a, ay - a, ax + a, ay + a), fill=colour)
        self.draw.ellipse((bx - b, by - b, bx + b, by + b), fill=colour)

    def _ring(self, start: Point, end: Point, colour: Colour, radius: float) -> None:
        """A piece of a limb with straight ends."""
        width = max(1, round(2 * self.view.scale * radius))
        self.draw.line([self.view.pixel(start), self.view.pixel(end)], fill=colour, width=width)

    def _ball(self, centre: Point, radius: float, colour: Colour, tall: float = 1.0) -> None:
        x, y = self.view.pixel(centre)
        rx, ry = self.view.scale * radius, self.view.scale * radius * tall
        self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)

    def _box(self, centre: Point, wide: float, deep: float, tall: float, colour: Colour) -> None:
        """A rounded box with half lengths across, along and up."""
        x, y = self.view.pixel(centre)
        half = self.view.half_width(wide, deep)
        up = self.view.scale * tall
        corner = 0.35 * min(half, up)
        self.draw.rounded_rectangle((x - half, y - up, x + half, y + up), corner, fill=colour)


def _shaded(colour: Colour, shade: float) -> Colour:
    red, green, blue = colour
    return int(red * shade), int(green * shade), int(blue * shade)


def _between(start: Point, end: Point, share: float) -> Point:
    x, y, z = (a + share * (b - a) for a, b in zip(start, end, strict=True))
    return x, y, z
