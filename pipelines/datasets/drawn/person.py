"""Who is drawn: everything about a person that stays the same from camera to camera.

Colours are dealt to families of `FAMILY_SIZE` people: the members of a family wear the same colours
and have the same hair colour, and differ in how the clothes are cut and patterned, in hair style,
bag, body and gait. So colours alone find the family and not the person.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias, TypeVar

import numpy as np

from pipelines.datasets.drawn.streams import Subject, stream

T = TypeVar("T")
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
HEMS = (0.50, 0.46, 0.30)
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
def person(seed: int, subject: Subject, number: int) -> Person:
    """The person with this number; a pure function of its arguments."""
    family = stream(seed, Subject.FAMILY, subject, number // FAMILY_SIZE)
    own = stream(seed, subject, number)
    top = _pick(CLOTH, family)
    lower = _pick(LOWER_CLOTH, family)
    body = own.random(7).tolist()
    return Person(
        stature=0.90 + 0.16 * body[0],
        build=0.88 + 0.44 * body[1],
        hip_height=0.49 + 0.06 * body[2],
        shoulder=0.105 + 0.035 * body[3],
        hip=0.080 + 0.025 * body[4],
        stride=0.30 + 0.25 * body[5],
        arm_swing=0.15 + 0.45 * body[6],
        skin=_pick(SKIN, family),
        hair=_pick(HAIR, family),
        hair_style=_pick(HAIR_STYLES, own),
        top=top,
        second=_pick(_unlike(top), family),
        pattern=_pick(PATTERNS, own),
        sleeve=_pick(SLEEVES, own),
        second_sleeves=bool(own.random() < 0.3),
        hem=_pick(HEMS, own),
        lower=lower,
        lower_second=_pick(_unlike(lower), family),
        lower_cut=_pick(LOWER, own),
        lower_pattern=_pick(LOWER_PATTERNS, own),
        shoes=_pick(((36, 34, 34), (222, 222, 218), (120, 78, 50)), own),
        bag=_pick(BAGS, own),
        bag_colour=_pick(CLOTH, family),
    )


def _unlike(colour: Colour) -> tuple[Colour, ...]:
    """The cloths that are clearly lighter or darker than a colour."""
    return tuple(cloth for cloth in CLOTH if abs(sum(cloth) - sum(colour)) > CONTRAST)


def _pick(choices: tuple[T, ...], random: np.random.Generator) -> T:
    return choices[int(random.integers(len(choices)))]
