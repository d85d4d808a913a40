"""Which identities are trained on, of which domains they are, and where their images lie.

Memory: a few numbers an identity; where views are told apart, 8 bytes an image besides.

Legend: I identities, V images of a view.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.blocks import Blocks, read_shard
from pipelines.counter_random import counter_hash
from pipelines.errors import UserError


@dataclass(frozen=True)
class IdentityIndex:
    """Training identities and where their images lie; class i is the i-th identity in sorted
    order."""

    names: tuple[str, ...]
    shard_I: np.ndarray
    first_row_I: np.ndarray
    count_I: np.ndarray
    domains: tuple[str, ...] = field(init=False)
    """What stands before the slash in the names, sorted."""
    domain_I: np.ndarray = field(init=False)
    """int64 [I]: position of the identity's domain in `domains`."""

    def __post_init__(self) -> None:
        of_names = np.array([name.partition("/")[0] for name in self.names], dtype=str)
        domains, domain_I = np.unique(of_names, return_inverse=True)
        object.__setattr__(self, "domains", tuple(domains.tolist()))
        object.__setattr__(self, "domain_I", domain_I.astype(np.int64))

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

    def keep(self, kept_I: np.ndarray) -> "IdentityIndex":
        """The identities where the bool [I] is true."""
        names = tuple(name for name, kept in zip(self.names, kept_I, strict=True) if kept)
        return IdentityIndex(
            names, self.shard_I[kept_I], self.first_row_I[kept_I], self.count_I[kept_I]
        )

    def __str__(self) -> str:
        counts = zip(self.domains, np.bincount(self.domain_I), strict=True)
        by_domain = ", ".join(f"{domain} {count}" for domain, count in counts)
        noun = "domain" if len(self.domains) == 1 else "domains"
        return f"{len(self)} identities of {len(self.domains)} {noun} ({by_domain})"


@dataclass(frozen=True)
class ViewRows:
    """The images of one view, identity after identity."""

    view: str
    images: int
    """How many of them a batch takes of an identity."""
    row_V: np.ndarray
    """int64: rows of the shards."""
    start_I: np.ndarray
    """int64 [I + 1]: those of identity i are start_I[i], ..., start_I[i + 1] - 1 of `row_V`."""

    def rows(self, label: int) -> np.ndarray:
        """int64: where the identity's images of this view lie in its shard."""
        return self.row_V[self.start_I[label] : self.start_I[label + 1]]


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
    for _, camera in _columns(blocks, index, "camera"):
        found |= set(camera.to_pylist())
    return tuple(sorted(found - {None}))


def find_views(
    blocks: Blocks, index: IdentityIndex, views: Mapping[str, int]
) -> tuple[IdentityIndex, tuple[ViewRows, ...]]:
    """The identities that have every one of the views, and where those images of theirs lie.

    Args:
        blocks: the images.
        index: the identities.
        views: how many images of an identity a batch takes, by view.

    Raises `UserError` where none is left.
    """
    wanted = pa.array(list(views))
    rows: dict[str, list[np.ndarray]] = {
        view: [np.empty(0, np.int64)] * len(index) for view in views
    }
    there: set[str] = set()
    for label, column in _columns(blocks, index, "view"):
        there |= set(column.unique().to_pylist())
        position_N = pc.fill_null(pc.index_in(column, wanted), -1).to_numpy()
        for position, view in enumerate(views):
            here = np.flatnonzero(position_N == position)
            rows[view][label] = int(index.first_row_I[label]) + here
    kept_I = np.array([all(len(rows[view][i]) for view in views) for i in range(len(index))], bool)
    if not kept_I.any():
        named = ", ".join(sorted(there - {None})) or "unknown"
        raise UserError(
            f"batch.views={dict(views)}: no identity has images of all of these views; "
            f"views of the training images: {named}"
        )
    kept = np.flatnonzero(kept_I)
    return index.keep(kept_I), tuple(
        _view_rows(view, images, [rows[view][i] for i in kept]) for view, images in views.items()
    )


def _view_rows(view: str, images: int, rows: list[np.ndarray]) -> ViewRows:
    start_I = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return ViewRows(view, images, np.concatenate(rows), start_I)


def _columns(
    blocks: Blocks, index: IdentityIndex, name: str
) -> Iterator[tuple[int, pa.ChunkedArray]]:
    """(label, the column for its rows) of every identity, shard by shard."""
    for shard in np.unique(index.shard_I).tolist():
        column = read_shard(blocks.folder, shard, [name])[name]
        for label in np.flatnonzero(index.shard_I == shard).tolist():
            yield label, column.slice(int(index.first_row_I[label]), int(index.count_I[label]))
