"""What the files of a manifest hold: whether each is an image, and which are copies of others.

Every file is read once, decoded by the check that ingest makes (`pipelines.images.intake`), and
hashed: copies are files of equal bytes. A copy does harm where it makes a test easier than it
looks, or contradicts itself:

| copies | harm |
| --- | --- |
| in train, and in query or gallery | always: the test was trained on |
| in query and gallery, one identity under one known camera | none: Market's rule leaves them out |
| in query and gallery otherwise | the query finds itself at rank 1, or must not |
| within a split, one identity | none, but each counts |
| within a split, several identities | one of them is wrong |

Memory: one image at a time, and of every image the hash: measured on half a million, 380 bytes an
image at the peak. Copies are Python objects for a moment; of an official set they are few.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.console import Reporter
from pipelines.images import ImageError, intake

BATCH = 1024
NAMED = 3
"""So many files are named in a sentence."""

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Files that repeat others, of one kind."""

    text: str
    """How many, of what kind, and the first of them, in one line."""
    harmful: bool


def open_images(rows: pa.Table, reporter: Reporter) -> pa.Table:
    """The manifest's rows, which must be local files, with the columns `digest` (SHA-256, binary)
    and `reason` (string): the second says why a file is no image, the first is null then."""
    digests: list[pa.Array] = []
    reasons: list[pa.Array] = []
    with reporter.bar("check", total=len(rows), unit="images") as bar:
        for start in range(0, len(rows), BATCH):
            looked = [_look(uri) for uri in rows["uri"].slice(start, BATCH).to_pylist()]
            digests.append(pa.array([digest for digest, _ in looked], pa.binary(32)))
            reasons.append(pa.array([reason for _, reason in looked], pa.string()))
            bar.advance(len(looked))
    opened = rows.append_column("digest", pa.chunked_array(digests, pa.binary(32)))
    return opened.append_column("reason", pa.chunked_array(reasons, pa.string()))


def _look(path: str) -> tuple[bytes | None, str | None]:
    try:
        data = Path(path).read_bytes()
        intake(data)
    except ImageError as error:
        return None, str(error)
    except OSError as error:
        return None, f"cannot be read: {error.strerror}"
    return hashlib.sha256(data).digest(), None


def find_copies(opened: pa.Table) -> list[Copies]:
    """Files of equal bytes among those of `open_images`, the same for the same rows."""
    found: dict[str, list[tuple[Row, Row]]] = defaultdict(list)
    for group in _equal_files(opened):
        for kind, copy, original in _pair_up(group):
            found[kind].append((copy, original))
    return [
        Copies(text=_sentence(KINDS[kind], found[kind]), harmful=kind in HARMFUL)
        for kind in KINDS
        if kind in found
    ]


KINDS = {
    "leak": "of query or gallery {lie} byte for byte in train",
    "asked": "of query {lie} byte for byte in the gallery, under another identity or camera or an "
    "unknown camera",
    "left out": "of query {lie} byte for byte in the gallery, under the same identity and camera; "
    "the protocol market leaves {them} out, others do not",
    "contradiction": "{lie} byte for byte in the same split under another identity",
    "repeat": "{lie} byte for byte in the same split a second time, under the same identity",
}
HARMFUL = {"leak", "asked", "contradiction"}


def _equal_files(opened: pa.Table) -> Iterator[list[Row]]:
    read = opened.filter(pc.is_valid(opened["digest"]))
    if len(read) == 0:
        return
    code_N = pc.dictionary_encode(read["digest"].combine_chunks()).indices.to_numpy()
    repeated_N = np.bincount(code_N)[code_N] > 1
    rows = read.drop_columns(["digest"]).append_column("code", pa.array(code_N))
    repeated = rows.filter(pa.array(repeated_N)).sort_by([("code", "ascending")])
    for _, group in groupby(repeated.to_pylist(), key=lambda row: row["code"]):
        yield sorted(group, key=lambda row: row["key"])


def _pair_up(group: Sequence[Row]) -> Iterator[tuple[str, Row, Row]]:
    """(kind, file, one that it equals) of files that are all equal; a file may be of several
    kinds."""
    train, query, gallery = (
        [row for row in group if row["split"] == split] for split in ("train", "query", "gallery")
    )
    for row in (query + gallery) if train else ():
        yield "leak", row, train[0]
    for row in query if gallery else ():
        others = [other for other in gallery if not _left_out(row, other)]
        yield ("asked", row, others[0]) if others else ("left out", row, gallery[0])
    for rows in (train, query, gallery):
        for row in rows[1:]:
            same = row["identity"] == rows[0]["identity"]
            yield "repeat" if same else "contradiction", row, rows[0]


def _left_out(query: Row, gallery: Row) -> bool:
    """Whether Market's rule leaves this gallery image out for that query."""
    return query["camera"] is not None and all(
        query[name] == gallery[name] for name in ("identity", "camera")
    )


def _sentence(text: str, pairs: Sequence[tuple[Row, Row]]) -> str:
    lie, them = ("lies", "it") if len(pairs) == 1 else ("lie", "them")
    named = (f"{copy['key']} = {original['key']}" for copy, original in pairs)
    said = text.format(lie=lie, them=them)
    return f"{plural(len(pairs), 'image')} {said}: {name_first(named, len(pairs))}"


def plural(number: int, one: str, many: str = "") -> str:
    """`1 image`, `2,000 images`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def name_first(names: Iterable[str], total: int) -> str:
    """The first few of `total` names, and how many more there are."""
    first = [name for name, _ in zip(names, range(NAMED), strict=False)]
    more = [f"and {total - NAMED:,} more"] if total > NAMED else []
    return ", ".join([*first, *more])
