"""Scores of wrong answers, counted by size: what false alarms depend on.

Q x G scores cannot be kept; a histogram of 2^16 bins over [-1, 1] can, and every threshold at the
edge of a bin has its exact rate of false alarms. Scores below a floor are only counted in total,
which is all that low rates need and saves most of the work.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

BINS = 1 << 16
HIGHEST_RATE = 1e-2
"""The highest rate of false alarms that must be told exactly."""
MARGIN = 1.5
SMALL = 10_000_000
"""Up to so many scores there is no floor."""


@dataclass(kw_only=True)
class Histogram:
    """Counts of scores between -1 and 1."""

    floor: float
    """Scores at or above it are in the bins."""
    bins: npt.NDArray[np.int64]
    """[BINS] from low to high; bin b holds [edge(b), edge(b + 1)), the last one 1 as well."""
    total: int = 0
    """All scores, those below the floor among them."""

    @classmethod
    def empty(cls, floor: float = -np.inf) -> "Histogram":
        """Nothing counted."""
        return cls(floor=floor, bins=np.zeros(BINS, dtype=np.int64))

    def count(self, scores: npt.NDArray[np.float32]) -> None:
        """Bin scores [n]; those below the floor fall by. The total is the caller's."""
        kept = scores[scores >= self.floor] if self.floor > -np.inf else scores
        self.bins += np.bincount(bin_of(kept), minlength=BINS)

    def add(self, other: "Histogram") -> None:
        """Take in another one."""
        self.floor = max(self.floor, other.floor)
        self.bins += other.bins
        self.total += other.total

    def reaches_down(self) -> bool:
        """Whether rates of false alarms up to HIGHEST_RATE can be told."""
        return self.floor == -np.inf or self.bins.sum() > HIGHEST_RATE * self.total

    def at_or_above(self) -> npt.NDArray[np.int64]:
        """[BINS + 1] how many scores reach edge 0, 1, ..., BINS; right from the floor upwards."""
        return np.r_[np.cumsum(self.bins[::-1])[::-1], 0]


def bin_of(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Numbers of the bins; in float64, where no score is rounded across an edge."""
    place = np.floor((scores.astype(np.float64) + 1) * (BINS / 2)).astype(np.int64)
    return np.clip(place, 0, BINS - 1)


def edge(number: npt.NDArray[np.int64] | int) -> npt.NDArray[np.float64]:
    """Lower edge of a bin."""
    return np.asarray(number, dtype=np.float64) * (2 / BINS) - 1


def floor_of_sample(sample: Histogram, scores: int) -> float:
    """A floor above which half again HIGHEST_RATE of so many scores lie."""
    if scores <= SMALL:
        return -np.inf
    above = sample.at_or_above()
    number = int(np.flatnonzero(above >= MARGIN * HIGHEST_RATE * sample.total)[-1])
    return float(edge(number))
