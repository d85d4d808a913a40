"""Who is drawn: everything about a person that stays the same from camera to camera.

Colours are dealt to families of `FAMILY_SIZE` people: the members of a family wear the same colours
and have the same hair colour, and differ in how the clothes are cut and patterned, in hair style,
bag, body and gait. So colours alone find the family and not the person.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from pipelines.datasets.drawn.streams import Stream

Colour: TypeAlias = tuple[int, int, int]

FAMILY_SIZE = 6
CONTRAST = 150
"""Least difference of two cloths' summed channels that makes a pattern readable."""
CLOTH: tuple[Colour, ...] = (
    (226, 224, 218),
    (34, 34, 40),
    (128, 130, 134),
    (178, 44, 48),
    (52, 84, 172),
    (58, 124, 76),
    (220, 186, 70),
    (112, 60, 120),
)
LOWER_CLOTH: tuple[Colour, ...] = (
    (38, 38, 44),
    (44, 54, 92),
    (112, 112, 116),
    (176, 154, 122),
    (84, 110, 156),
)
HAIR: tuple[Colour, ...] = ((28, 24, 22), (84, 56, 36), (176, 140, 84), (150, 150, 150))
SKIN: tuple[Colour, ...] = ((236, 196, 166), (204, 158, 122), (150, 106, 76), (104, 72, 54))
PATTERNS = (
    "plain",
    "hoops",
    "fine_hoops",
    "stripes",
    "fine_stripes",
    "checks",
    "diagonals",
    "dots",
    "halves",
    "band",
    "open_jacket",
)
LOWER_PATTERNS = ("plain", "hoops", "two_tone", "side_stripe")
SLEEVES = (0.0, 0.55, 1.0)
HEMS = (0.50, 0.46, 0.3)
LOWER = ("trousers", "shorts", "skirt", "wide_trousers")
HAIR_STYLES = ("short", "long", "bun", "cap", "bald")
BAGS = ("none", "backpack", "shoulder_bag", "handbag")


@dataclass(frozen=True, kw_only=True)
class Person:
    """Lengths are shares of the body's height; colours are RGB, 0 to 255."""

    stature: float
    """Height of the body, 1 for the average."""
    build: float
    """Width of trunk and limbs, 1 for the average."""
    hip_height: float
    shoulder: float
    """Half the width of the shoulders."""
    hip: float
    """Half the width of the hips."""
    stride: float
    """Largest angle of the thigh in radians."""
    arm_swing: float
    skin: Colour
    hair: Colour
    hair_style: str
    top: Colour
    second: Colour
    """Second colour of the top: pattern, inner shirt or print."""
    pattern: str
    sleeve: float
    """Share of the arm that the sleeve covers."""
    second_sleeves: bool
    """Sleeves in the second colour."""
    hem: float
    """Height at which the top ends."""
    lower: Colour
    lower_cut: str
    lower_second: Colour
    lower_pattern: str
    shoes: Colour
    bag: str
    bag_colour: Colour


@lru_cache(maxsize=4096)
def person(seed: int, kind: str, number: int) -> Person:
    """The person of a kind (`person`, `passer-by`) with this number: a pure function."""
    family = Stream(seed, f"{kind}'s family", number // FAMILY_SIZE)
    own = Stream(seed, kind, number)
    top = family.pick(CLOTH)
    lower = family.pick(LOWER_CLOTH)
    return Person(
        stature=own.uniform(0.90, 1.06),
        build=own.uniform(0.88, 1.32),
        hip_height=own.uniform(0.49, 0.55),
        shoulder=own.uniform(0.105, 0.14),
        hip=own.uniform(0.080, 0.105),
        stride=own.uniform(0.30, 0.55),
        arm_swing=own.uniform(0.15, 0.6),
        skin=family.pick(SKIN),
        hair=family.pick(HAIR),
        hair_style=own.pick(HAIR_STYLES),
        top=top,
        second=family.pick(_unlike(top)),
        pattern=own.pick(PATTERNS),
        sleeve=own.pick(SLEEVES),
        second_sleeves=own.chance(0.3),
        hem=own.pick(HEMS),
        lower=lower,
        lower_second=family.pick(_unlike(lower)),
        lower_cut=own.pick(LOWER),
        lower_pattern=own.pick(LOWER_PATTERNS),
        shoes=own.pick(((36, 34, 34), (222, 222, 218), (120, 78, 50))),
        bag=own.pick(BAGS),
        bag_colour=family.pick(CLOTH),
    )


def _unlike(colour: Colour) -> tuple[Colour, ...]:
    """The cloths that are clearly lighter or darker than a colour."""
    return tuple(cloth for cloth in CLOTH if abs(sum(cloth) - sum(colour)) > CONTRAST)
