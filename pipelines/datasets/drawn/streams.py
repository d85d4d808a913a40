"""Random numbers that belong to a thing and not to a moment.

A stream is a counter-based generator (Philox, Salmon et al., "Parallel Random Numbers: As Easy as
1, 2, 3", SC 2011) addressed by the seed, what is drawn, and which one: the same address gives the
same numbers in any order, process or machine.
"""

from enum import IntEnum

import numpy as np


class Subject(IntEnum):
    """What the numbers decide."""

    FAMILY = 1
    PERSON = 2
    PASSER_BY = 3
    CAMERA = 4
    SCENE = 5
    IMAGE = 6


def stream(seed: int, subject: Subject, *address: int) -> np.random.Generator:
    """The random numbers of one subject; `address` is up to three whole numbers."""
    words = [part % 2**64 for part in (*address, 0, 0, 0)[:3]]
    key = np.array([seed % 2**64, subject], np.uint64)
    counter = np.array([0, *words], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
