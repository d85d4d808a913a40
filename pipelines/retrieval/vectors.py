"""Gallery vectors as blocks: held in memory, or read from disk block by block.

Shapes: G gallery rows, W rows of a block, D embedding dimension.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Vectors: TypeAlias = npt.NDArray[np.float32]


class VectorSource(Protocol):
    """Unit vectors in the order of the gallery's rows."""

    def __len__(self) -> int:
        """G."""
        ...

    def blocks(self, width: int) -> Iterator[tuple[int, Vectors]]:
        """(first row, [W, D] vectors), W at most `width`, until all rows were given."""
        ...

    def part(self, low: int, high: int) -> "VectorSource":
        """The rows low, ..., high - 1, which keep their numbers in the gallery."""
        ...


@dataclass(frozen=True)
class HeldVectors:
    """Vectors in memory; a block is a view."""

    vectors: Vectors
    """[G, D] float32."""
    first: int = 0
    """Number of the first row, where this is a part of a gallery."""

    def __len__(self) -> int:
        return len(self.vectors)

    def blocks(self, width: int) -> Iterator[tuple[int, Vectors]]:
        """Views of the vectors."""
        for start in range(0, len(self.vectors), width):
            yield self.first + start, self.vectors[start : start + width]

    def part(self, low: int, high: int) -> "HeldVectors":
        """A view of some rows."""
        return HeldVectors(self.vectors[low:high], self.first + low)
