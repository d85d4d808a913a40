"""Random numbers as a pure function of what they are for.

A number is asked for by the values that name it (a stream, the seed, the step, the position in the
batch), so nothing has to be carried along, saved or split between workers. The values are folded
one after the other into a 64-bit state: `state = finalise((state ^ value) + GOLDEN)`, where
`finalise` is the variant 13 of Stafford's mixers that splitmix64 ends with (Steele, Lea, Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014). Plain 64-bit arithmetic, hence the
same on every machine and independent of the versions of NumPy's random streams.

Not for cryptography.
"""

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Part = int | str | NDArray[Any]
"""A value that names a random number: an integer, an array of integers, or the name of a stream."""

_START = np.uint64(0x6A09E667F3BCC908)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


@lru_cache(maxsize=1024)
def _word_of_text(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _words(part: Part) -> NDArray[np.uint64] | np.uint64:
    if isinstance(part, str):
        return np.uint64(_word_of_text(part))
    if isinstance(part, np.ndarray):
        if part.dtype.kind not in "iu":
            raise ValueError(f"hashed arrays hold integers, got dtype {part.dtype}")
        return part.astype(np.uint64)
    value = int(part)
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"hashed integers fit in 64 bits, got {value}")
    return np.uint64(value & _MASK)


def counter_hash(*parts: Part) -> NDArray[np.uint64]:
    """64 random bits for every combination of the parts.

    Arrays broadcast against each other; the result has their common shape (none: zero-dimensional).
    The order of the parts counts, and so does their number. Negative integers count modulo 2**64.
    """
    state: Any = _START
    with np.errstate(over="ignore"):  # arithmetic modulo 2**64 is meant
        for part in parts:
            state = (state ^ _words(part)) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * _MULTIPLIER_1
            state = (state ^ (state >> np.uint64(27))) * _MULTIPLIER_2
            state = state ^ (state >> np.uint64(31))
    return np.asarray(state, dtype=np.uint64)


def uniform(*parts: Part) -> NDArray[np.float64]:
    """Uniform float64 in [0, 1), 53 random bits each, shaped as `counter_hash` shapes them."""
    high_bits = counter_hash(*parts) >> np.uint64(11)
    return np.asarray(high_bits * 2.0**-53, dtype=np.float64)


def permutation(n: int, *parts: int | str) -> NDArray[np.int64]:
    """A random order of 0..n-1, int64 [n]."""
    hashes = counter_hash(*parts, np.arange(n, dtype=np.int64))
    return np.argsort(hashes, kind="stable").astype(np.int64)


def generator_seed(*parts: int | str) -> int:
    """A seed below 2**63 for `torch.manual_seed` and its like."""
    return int(counter_hash(*parts)) >> 1
