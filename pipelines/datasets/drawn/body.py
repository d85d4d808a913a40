"""The walking body: joints in space, and how a camera sees them.

Body axes: x to the person's left, y up from the ground, z forward; lengths in body heights. In the
gait thighs and arms swing as a sine of the phase, and knees and elbows bend on the way forward.
"""

from dataclasses import dataclass
from math import cos, hypot, pi, sin
from typing import TypeAlias

from pipelines.datasets.drawn.person import Person

Point: TypeAlias = tuple[float, float, float]
Pixel: TypeAlias = tuple[float, float]

SHOULDER_HEIGHT = 0.815
NECK_HEIGHT = 0.855
HEAD_HEIGHT = 0.925
HEAD_RADIUS = 0.066
TRUNK_DEPTH = 0.72
"""Depth of the trunk as a share of its width."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Orthographic view of a body that stands at (x, ground) in the picture, in pixels."""

    yaw: float
    """Direction of walking in radians: 0 towards the camera, pi away from it."""
    pitch: float
    """How far the camera looks down, as the drop in the picture a length nearer to it."""
    scale: float
    """Pixels of a body height."""
    x: float
    ground: float

    def depth(self, point: Point) -> float:
        """How near the point is to the camera."""
        return point[2] * cos(self.yaw) - point[0] * sin(self.yaw)

    def pixel(self, point: Point) -> Pixel:
        """Where the point falls in the picture."""
        across = point[0] * cos(self.yaw) + point[2] * sin(self.yaw)
        up = point[1] - self.pitch * self.depth(point)
        return self.x + self.scale * across, self.ground - self.scale * up

    def half_width(self, half_width: float, half_depth: float) -> float:
        """Half of what is seen of an upright ellipse, in pixels."""
        return self.scale * hypot(half_width * cos(self.yaw), half_depth * sin(self.yaw))


@dataclass(frozen=True)
class Limb:
    """Two bones: hip, knee, ankle and toe, or shoulder, elbow and hand."""

    root: Point
    middle: Point
    end: Point
    tip: Point


@dataclass(frozen=True)
class Body:
    """Joints of one moment of the gait."""

    legs: tuple[Limb, Limb]
    arms: tuple[Limb, Limb]


def walk(person: Person, phase: float) -> Body:
    """The body at a phase of the gait in radians."""
    sides = ((1.0, phase), (-1.0, phase + pi))
    left_leg, right_leg = (_leg(person, side, at) for side, at in sides)
    left_arm, right_arm = (_arm(person, side, at) for side, at in sides)
    return Body(legs=(left_leg, right_leg), arms=(left_arm, right_arm))


def _leg(person: Person, side: float, phase: float) -> Limb:
    swing = person.stride * sin(phase)
    bend = 0.15 + 0.75 * max(0.0, cos(phase))
    thigh, shin = 0.52 * person.hip_height, 0.44 * person.hip_height
    x = 0.55 * side * person.hip
    knee = (x, person.hip_height - thigh * cos(swing), thigh * sin(swing))
    low = swing - bend
    ankle = (x, knee[1] - shin * cos(low), knee[2] + shin * sin(low))
    toe = (x * 1.25, ankle[1] - 0.02, ankle[2] + 0.09 * cos(low))
    return Limb((x, person.hip_height, 0.0), knee, ankle, toe)


def _arm(person: Person, side: float, phase: float) -> Limb:
    swing = -person.arm_swing * sin(phase)
    x = side * (person.shoulder + 0.012) * person.build
    upper, fore = 0.165, 0.15
    elbow = (x * 1.08, SHOULDER_HEIGHT - 0.02 - upper * cos(swing), upper * sin(swing))
    low = swing + 0.25 + 0.5 * max(0.0, sin(swing))
    hand = (x * 1.10, elbow[1] - fore * cos(low), elbow[2] + fore * sin(low))
    tip = (x * 1.10, hand[1] - 0.03 * cos(low), hand[2] + 0.03 * sin(low))
    return Limb((x, SHOULDER_HEIGHT - 0.02, 0.0), elbow, hand, tip)
