"""Random numbers that belong to a thing and not to a moment.

A stream is addressed by the seed, what is drawn and which one; its numbers come from
`counter_random`, so that the same address gives the same numbers in any order, process, machine or
version of a library.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipelines.counter_random import counter_hash

T = TypeVar("T")

BLOCK = 64
"""Numbers that are made at once."""
SPREAD = (4 * (2**32 - 1) / 12) ** 0.5
"""Standard deviation of the sum of four 16-bit numbers."""


class Stream:
    """The random numbers of one subject, one after the other."""

    def __init__(self, seed: int, subject: str, *address: int) -> None:
        """`subject` names what is decided (`person`, `camera`), `address` says which one."""
        self._name: tuple[int | str, ...] = (subject, seed, *address)
        self._blocks = 0
        self._arrays = 0
        self._words: list[int] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return low + (high - low) * (self._word() >> 11) * 2.0**-53

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.uniform() < probability

    def below(self, count: int) -> int:
        """A whole number from 0 to count - 1."""
        return int(self.uniform() * count)

    def pick(self, choices: tuple[T, ...]) -> T:
        """One of the choices."""
        return choices[self.below(len(choices))]

    def normal(self, deviation: float) -> float:
        """A number around 0, bell-shaped as in `noise`, at most 3.5 deviations away."""
        word = self._word()
        total = sum((word >> shift) & 0xFFFF for shift in (0, 16, 32, 48))
        return deviation * (total - 2 * 0xFFFF) / SPREAD

    def noise(self, *shape: int) -> NDArray[np.float32]:
        """An array of such numbers with deviation 1: sums of four uniform ones, float32 [shape]."""
        count = int(np.prod(shape))
        words = counter_hash(*self._name, "noise", self._arrays, np.arange(count))
        self._arrays += 1
        total = words.view(np.uint16).reshape(*shape, 4).sum(-1, dtype=np.int32)
        return ((total - 2 * 0xFFFF) / SPREAD).astype(np.float32)

    def _word(self) -> int:
        if not self._words:
            counters = np.arange(BLOCK * self._blocks, BLOCK * (self._blocks + 1))
            self._words = counter_hash(*self._name, "scalar", counters).tolist()
            self._blocks += 1
        return self._words.pop()
