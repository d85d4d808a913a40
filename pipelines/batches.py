"""Which images make batch N: a pure function of (seed, N, identity index).

There is no sampler state. Step N belongs to pass N // (I // P), where I identities are taken in a
new random order in every pass and P of them make a batch; the I mod P last ones of a pass sit it
out. An identity's images are dealt K at a time from a shuffled deck that is shuffled anew when it
runs out, so every image is seen. One worker or eight, a resumed run or an unbroken one, Ray Data
or a plain loop see the very same images.

The `shuffle` sampler knows no identities: a pass is a random order of all N images, cut into
batches; the N mod B last ones sit it out.

Legend: I identities, P identities a batch, K images an identity, B = P K images a batch, N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pyarrow as pa

from pipelines.augment import Augmentation, flip_and_crop
from pipelines.blocks import Blocks, read_shard
from pipelines.counter_random import counter_hash, permutation
from pipelines.errors import UserError
from pipelines.images import Interpolation, decode

Sampler = Literal["identities", "shuffle"]


@dataclass(frozen=True)
class IdentityIndex:
    """Training identities and where their images lie; class i is the i-th identity in sorted
    order."""

    names: tuple[str, ...]
    shard_I: np.ndarray
    first_row_I: np.ndarray
    count_I: np.ndarray

    @classmethod
    def of(cls, entries: Sequence[tuple[str, int, int, int]]) -> "IdentityIndex":
        """From (identity, shard, first row, rows)."""
        entries = sorted(entries)
        columns = np.array([entry[1:] for entry in entries], dtype=np.int64).reshape(
            len(entries), 3
        )
        return cls(tuple(entry[0] for entry in entries), *columns.T)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def images(self) -> int:
        """Number of images of all identities."""
        return int(self.count_I.sum())


@dataclass(frozen=True)
class BatchPlan:
    """The plan of one run; `rows(step)` is all it does."""

    index: IdentityIndex
    seed: int
    identities: int
    images: int
    sampler: Sampler = "identities"

    def __post_init__(self) -> None:
        if self.sampler == "shuffle" and self.index.images < self.batch_size:
            raise UserError(
                f"batch.identities={self.identities} times batch.images={self.images} is more than "
                f"the {self.index.images} training images; lower one of them or add images"
            )
        if self.sampler == "identities" and len(self.index) < self.identities:
            raise UserError(
                f"batch.identities={self.identities}, but only {len(self.index)} train identities "
                "have enough images (data.min_images); lower batch.identities or add images"
            )

    @property
    def batch_size(self) -> int:
        """Images of the global batch."""
        return self.identities * self.images

    @property
    def steps_per_epoch(self) -> int:
        """Steps that show as many images as there are."""
        return max(1, round(self.index.images / self.batch_size))

    def rows(self, step: int) -> "BatchRows":
        """The global batch of this step; of the `identities` sampler P blocks of K rows, each block
        one identity."""
        if self.sampler == "shuffle":
            return self._shuffled(step)
        steps_per_pass = len(self.index) // self.identities
        pass_, slot = divmod(step, steps_per_pass)
        order_I = permutation(len(self.index), "identity order", self.seed, pass_)
        label_P = order_I[slot * self.identities : (slot + 1) * self.identities]
        row_PK = np.stack([self._deal(int(label), pass_) for label in label_P])
        return BatchRows(
            shard_B=np.repeat(self.index.shard_I[label_P], self.images),
            row_B=(self.index.first_row_I[label_P][:, None] + row_PK).reshape(-1),
            label_B=np.repeat(label_P, self.images),
        )

    def _shuffled(self, step: int) -> "BatchRows":
        count = self.index.images
        pass_, slot = divmod(step, count // self.batch_size)
        image_B = _image_order(count, self.seed, pass_)[slot * self.batch_size :][: self.batch_size]
        end_I = np.cumsum(self.index.count_I)
        label_B = np.searchsorted(end_I, image_B, side="right")
        number_B = image_B - (end_I - self.index.count_I)[label_B]
        return BatchRows(
            shard_B=self.index.shard_I[label_B],
            row_B=self.index.first_row_I[label_B] + number_B,
            label_B=label_B,
        )

    def _deal(self, label: int, visit: int) -> np.ndarray:
        """int64 [K]: which of its images the identity shows at its `visit`-th turn."""
        count = int(self.index.count_I[label])
        turns = -(-count // self.images)
        shuffle, turn = divmod(visit, turns)
        deck = permutation(count, "image deck", self.seed, label, shuffle)
        return np.take(deck, np.arange(turn * self.images, (turn + 1) * self.images), mode="wrap")


@lru_cache(maxsize=2)
def _image_order(count: int, seed: int, pass_: int) -> np.ndarray:
    """int64 [N]: the images in the order of a pass of the `shuffle` sampler."""
    return permutation(count, "image order", seed, pass_)


@dataclass(frozen=True)
class BatchRows:
    """Where the images of a batch lie and what they are labelled: int64 arrays [B]."""

    shard_B: np.ndarray
    row_B: np.ndarray
    label_B: np.ndarray

    def of_rank(self, rank: int, world: int) -> "BatchRows":
        """The contiguous slice of a rank; identities that the sampler kept whole stay whole."""
        size = len(self.label_B) // world
        part = slice(rank * size, (rank + 1) * size)
        return BatchRows(self.shard_B[part], self.row_B[part], self.label_B[part])


def split_identities(
    blocks: Blocks, *, min_images: int, holdout: float
) -> tuple[IdentityIndex, IdentityIndex]:
    """(training, held-out) identities of the train split.

    Which identities are held out depends on their names alone, so that every trial of a search and
    the run after it agree. Identities with fewer than `min_images` images are in neither.
    """
    entries = [entry for entry in blocks.identities() if entry[3] >= min_images]
    ranking = sorted(range(len(entries)), key=lambda i: int(counter_hash("holdout", entries[i][0])))
    held = set(ranking[: round(holdout * len(entries))])
    kept = [entry for i, entry in enumerate(entries) if i not in held]
    return IdentityIndex.of(kept), IdentityIndex.of([entries[i] for i in sorted(held)])


def cameras_of(blocks: Blocks, index: IdentityIndex) -> tuple[str, ...]:
    """Sorted camera names of these identities; their positions are the model's camera indices."""
    found: set[str] = set()
    for shard in np.unique(index.shard_I).tolist():
        camera = read_shard(blocks.folder, shard, ["camera"])["camera"]
        here = index.shard_I == shard
        for first, count in zip(index.first_row_I[here], index.count_I[here], strict=True):
            found |= set(camera.slice(int(first), int(count)).to_pylist())
    return tuple(sorted(found - {None}))


@dataclass(frozen=True)
class ImageReader:
    """From batch rows to pixels, the same in a Ray task and in a plain loop."""

    size: tuple[int, int]
    interpolation: Interpolation
    augmentation: Augmentation
    seed: int

    def read(
        self, rows: BatchRows, step: int, first_position: int, shards: dict[int, pa.Table]
    ) -> dict[str, np.ndarray]:
        """Columns of one rank's batch: image uint8 [B, H, W, 3]; label, position, step int64 [B].

        `first_position` is the global position of the first row; augmentation draws from (seed,
        step, position).
        """
        position_B = np.arange(first_position, first_position + len(rows.label_B))
        image_BHW3 = np.stack(
            [
                decode(
                    shards[int(shard)]["image"][int(row)].as_buffer(), self.size, self.interpolation
                )
                for shard, row in zip(rows.shard_B, rows.row_B, strict=True)
            ]
        )
        return {
            "image": flip_and_crop(image_BHW3, self.augmentation, self.seed, step, position_B),
            "label": rows.label_B,
            "position": position_B,
            "step": np.full(len(position_B), step, dtype=np.int64),
        }
