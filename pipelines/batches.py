"""Which images make batch N: a pure function of (seed, N, identity index).

There is no sampler state. Step N belongs to pass N // (I // P), where I identities are taken in a
new random order in every pass and P of them make a batch; the I mod P last ones of a pass sit it
out. An identity's images are dealt K at a time from a shuffled deck that is shuffled anew when it
runs out, so every image is seen. One worker or eight, a resumed run or an unbroken one, Ray Data
or a plain loop see the very same images.

Where K is made of views, so many images of each, every view of an identity has a deck of its own.

The `domains` sampler does so in every one of the D domains by itself: a batch has P // D identities
of each, one domain after the other in turn, and a smaller domain has passed sooner and comes round
more often.

The `shuffle` sampler knows no identities: a pass is a random order of all N images, cut into
batches; the N mod B last ones sit it out.

Legend: I identities, P identities a batch, K images an identity, B = P K images a batch, N images.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import pyarrow as pa

from pipelines.augment import Augmentation, flip_and_crop
from pipelines.counter_random import permutation
from pipelines.errors import UserError
from pipelines.identity_index import IdentityIndex, ViewRows
from pipelines.images import Interpolation, decode

Sampler = Literal["identities", "domains", "shuffle"]


@dataclass(frozen=True)
class BatchPlan:
    """The plan of one run; `rows(step)` is all it does."""

    index: IdentityIndex
    seed: int
    identities: int
    images: int
    sampler: Sampler = "identities"
    views: tuple[ViewRows, ...] = ()
    """What the K images are made of; empty takes any."""

    def __post_init__(self) -> None:
        if self.sampler == "shuffle" and self.index.images < self.batch_size:
            raise UserError(
                f"batch.identities={self.identities} times batch.images={self.images} is more than "
                f"the {self.index.images} training images; lower one of them or add images"
            )
        if self.sampler != "shuffle" and len(self.index) < self.identities:
            enough = "all of batch.views" if self.views else "enough images (data.min_images)"
            raise UserError(
                f"batch.identities={self.identities}, but only {len(self.index)} train identities "
                f"have {enough}; lower batch.identities or add images"
            )
        if self.sampler == "domains":
            self._check_domains()

    def _check_domains(self) -> None:
        domains, total = self.index.domains, self.identities
        each, over = divmod(total, len(domains))
        if over:
            near = " or ".join(str(n * len(domains)) for n in (each, each + 1) if n)
            raise UserError(
                f"batch.identities={total} is not a multiple of the {len(domains)} domains that "
                f"batch.sampler=domains takes them from ({', '.join(domains)}); take {near}"
            )
        for domain, count in zip(domains, np.bincount(self.index.domain_I), strict=True):
            if count < each:
                raise UserError(
                    f"batch.identities={total} are {each} of every domain, and {domain} has only "
                    f"{count} train identities; lower batch.identities or add images"
                )

    @property
    def batch_size(self) -> int:
        """Images of the global batch."""
        return self.identities * self.images

    @property
    def steps_per_epoch(self) -> int:
        """Steps that show as many images as there are."""
        return max(1, round(self.used_images / self.batch_size))

    @property
    def used_images(self) -> int:
        """Images that a batch can have: those of the views, if views are asked for."""
        if self.views:
            return sum(len(view.row_V) for view in self.views)
        return self.index.images

    def rows(self, step: int) -> "BatchRows":
        """The global batch of this step; but for `shuffle` P blocks of K rows, each block one
        identity."""
        if self.sampler == "shuffle":
            return self._shuffled(step)
        if self.sampler == "domains":
            label_P, visit_P = self._of_domains(step)
        else:
            pass_, slot = divmod(step, len(self.index) // self.identities)
            order_I = permutation(len(self.index), "identity order", self.seed, pass_)
            label_P = order_I[slot * self.identities : (slot + 1) * self.identities]
            visit_P = np.full(self.identities, pass_)
        turns = zip(label_P.tolist(), visit_P.tolist(), strict=True)
        return BatchRows(
            shard_B=np.repeat(self.index.shard_I[label_P], self.images),
            row_B=np.concatenate([self._deal(label, visit) for label, visit in turns]),
            label_B=np.repeat(label_P, self.images),
        )

    def _of_domains(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """int64 [P] each: identities, one domain after the other in turn, and the pass that the
        domain of each is in."""
        each = self.identities // len(self.index.domains)
        labels, visits = [], []
        for position, domain in enumerate(self.index.domains):
            label_I = np.flatnonzero(self.index.domain_I == position)
            pass_, slot = divmod(step, len(label_I) // each)
            order_I = permutation(len(label_I), "domain order", self.seed, domain, pass_)
            labels.append(label_I[order_I[slot * each : (slot + 1) * each]])
            visits.append(np.full(each, pass_))
        return np.stack(labels, axis=1).reshape(-1), np.stack(visits, axis=1).reshape(-1)

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
        """int64 [K]: rows of the images that the identity shows at its `visit`-th turn."""
        if not self.views:
            count, first = int(self.index.count_I[label]), int(self.index.first_row_I[label])
            return first + _dealt(count, self.images, visit, "image deck", self.seed, label)
        dealt = []
        for view in self.views:
            row_V = view.rows(label)
            deck = ("view deck", self.seed, view.view, label)
            dealt.append(row_V[_dealt(len(row_V), view.images, visit, *deck)])
        return np.concatenate(dealt)


def _dealt(count: int, taken: int, visit: int, *deck: int | str) -> np.ndarray:
    """int64 [taken]: which of `count` cards come at the `visit`-th turn of the deck of this name;
    shuffled anew when it has run out, and the last turn is filled from its own top."""
    turns = -(-count // taken)
    shuffle, turn = divmod(visit, turns)
    cards = permutation(count, *deck, shuffle)
    return np.take(cards, np.arange(turn * taken, (turn + 1) * taken), mode="wrap")


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
