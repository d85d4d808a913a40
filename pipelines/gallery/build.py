"""Embeddings to a gallery: shards of vectors under explicit ids, then the manifest.

A shard's vectors are written first, its rows after them with the digest of the vectors in the
footer, and `gallery.json` last; each file appears under its name only when it is complete. So a
killed build goes on with the shards that are missing. Shards do not depend on each other:
`map_shards` may run them anywhere.

Shapes: B rows of a batch, D embedding dimension.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.errors import UserError
from pipelines.gallery.manifest import (
    GALLERY,
    INDEXES,
    METRIC,
    ROWS_SCHEMA,
    FileEntry,
    GalleryManifest,
    ShardEntry,
    index_name,
    read_manifest,
    rows_name,
)
from pipelines.retrieval.embeddings import (
    Source,
    check_keys,
    embedding_files,
    iter_unit_vectors,
    read_rows,
)
from pipelines.store import Folder, fingerprint, sha256_file

ROW_GROUP = 4096
FOOTER_KEY = b"rayreid"


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Everything that building one shard needs; small enough to send to a worker."""

    folder: Folder
    number: int
    first_id: int
    dim: int
    source: str
    """Fingerprint of the build; a finished shard of another one is not taken."""
    pieces: tuple[tuple[str, npt.NDArray[np.int64]], ...]
    """Embedding files with the ascending numbers of the rows to take."""


@dataclass(frozen=True, kw_only=True)
class BuiltShard:
    """A shard that is whole."""

    entry: ShardEntry
    reused: bool
    """Whether an earlier, killed build had finished it."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """The result of `build_gallery`."""

    folder: Folder
    manifest: GalleryManifest
    skipped: bool
    """Whether this gallery had been committed before and no shard was touched."""
    reused_shards: int
    """Shards taken over from a killed build."""


MapShards = Callable[[Callable[[ShardJob], BuiltShard], Sequence[ShardJob]], Iterable[BuiltShard]]


def build_gallery(
    source: Source,
    out: str | Folder,
    *,
    model: Mapping[str, Any],
    index: str = "flat",
    shards: int = 1,
    evaluation: Mapping[str, Any] | None = None,
    split: str | None = "gallery",
    map_shards: MapShards = map,
) -> Build:
    """Build the gallery of these embeddings in the folder `out`, or find it built.

    One build at a time may write to a folder: hold `Folder.lock` where two could meet.

    Args:
        source: embeddings file, folder of parts, or list of files.
        out: folder of the gallery; created.
        model: what made the embeddings; `embedding_dim`, if given, must be theirs.
        index: `flat`.
        shards: number of shards, of equal size to one row.
        evaluation: figures of these embeddings with their protocol, kept in the manifest.
        split: rows of this split go in, but for junk; None takes every split.
        map_shards: runs `build_shard` over the jobs, in any order and anywhere; `map` by default.

    Memory: the rows without vectors on the caller's side; see `build_shard` for a shard.

    Raises:
        UserError: bad embeddings or settings, or `out` holds another gallery, which stays whole.
    """
    _check_settings(index=index, shards=shards)
    folder = (Folder.open(out) if isinstance(out, str) else out).make()
    files = embedding_files(source)
    dim, chosen = _choose_rows(files, split)
    _check_dimension(dim, model, files)
    digest = fingerprint([_digest(file) for file in files], split, index, shards)
    entries = _committed_shards(folder, digest)
    skipped = entries is not None
    reused = 0
    if entries is None:
        jobs = _plan(folder, files, chosen, shards=shards, dim=dim, source=digest)
        built = sorted(map_shards(build_shard, jobs), key=lambda shard: shard.entry.index.name)
        entries = tuple(shard.entry for shard in built)
        reused = sum(shard.reused for shard in built)
    rows = sum(entry.rows for entry in entries)
    manifest = GalleryManifest(
        model=dict(model),
        embedding_dim=dim,
        metric=METRIC,
        index=index,
        rows=rows,
        next_id=rows,
        shards=entries,
        source=digest,
        evaluation=evaluation,
        evaluation_fingerprint=None if evaluation is None else fingerprint(evaluation),
    )
    _remove_strays(folder, entries)
    folder.write_json(GALLERY, manifest.to_dict())
    return Build(folder=folder, manifest=manifest, skipped=skipped, reused_shards=reused)


def build_shard(job: ShardJob) -> BuiltShard:
    """Write one shard, or find it written by a killed build.

    Memory: the shard's vectors (rows x D x 4 bytes, twice that while the index grows) and the rows
    of the embedding files that it takes from.
    """
    finished = _finished_shard(job)
    if finished is not None:
        return BuiltShard(entry=finished, reused=True)
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(job.dim))
    next_id = job.first_id
    for file, numbers in job.pieces:
        for vectors_BD in iter_unit_vectors(file, numbers):
            index.add_with_ids(vectors_BD, np.arange(next_id, next_id + len(vectors_BD)))
            next_id += len(vectors_BD)
    with job.folder.write(index_name(job.number)) as stream:
        writer = faiss.PyCallbackIOWriter(stream.write)  # type: ignore[attr-defined]  # not in its stub
        faiss.write_index(index, writer)
    index_entry = _entry(job.folder, index_name(job.number))
    _, tables = read_rows([file for file, _ in job.pieces])
    taken = [table.take(numbers) for table, (_, numbers) in zip(tables, job.pieces, strict=True)]
    rows = pa.concat_tables(taken).drop_columns("split")
    rows = rows.add_column(0, "id", pa.array(np.arange(job.first_id, next_id), pa.int64()))
    footer = {"source": job.source, "index_sha256": index_entry.sha256}
    schema = ROWS_SCHEMA.with_metadata({FOOTER_KEY: json.dumps(footer)})
    with job.folder.write(rows_name(job.number)) as stream:
        pq.write_table(rows.cast(schema), stream, row_group_size=ROW_GROUP, compression="zstd")
    rows_entry = _entry(job.folder, rows_name(job.number))
    entry = ShardEntry(index=index_entry, rows_file=rows_entry, rows=rows.num_rows)
    return BuiltShard(entry=entry, reused=False)


def _check_settings(*, index: str, shards: int) -> None:
    if index not in INDEXES:
        raise UserError(f"gallery.index={index} is not supported: use {', '.join(INDEXES)}")
    if shards < 1:
        raise UserError(f"gallery.shards={shards}: a gallery needs at least one shard")


def _check_dimension(dim: int, model: Mapping[str, Any], files: Sequence[str]) -> None:
    expected = model.get("embedding_dim", dim)
    if expected != dim:
        raise UserError(
            f"the embeddings have {dim} dimensions ({files[0]}), the model {model.get('name')} "
            f"makes {expected}: name the model that made them, or embed with this one"
        )


def _choose_rows(
    files: Sequence[str], split: str | None
) -> tuple[int, list[npt.NDArray[np.int64]]]:
    """The dimension, and for each file the numbers of the rows that go into the gallery."""
    dim, tables = read_rows(files)
    chosen = []
    for table in tables:
        keep = pc.not_equal(table["role"], "junk")
        if split is not None:
            keep = pc.and_(keep, pc.fill_null(pc.equal(table["split"], split), False))
        chosen.append(np.flatnonzero(np.asarray(keep)))
    rows = pa.concat_tables([t.take(numbers) for t, numbers in zip(tables, chosen, strict=True)])
    if not rows.num_rows:
        where = "" if split is None else f" with split={split!r}"
        raise UserError(f"the embeddings have no rows{where} that are not junk: nothing to index")
    check_keys(rows)
    return dim, chosen


def _plan(
    folder: Folder,
    files: Sequence[str],
    chosen: Sequence[npt.NDArray[np.int64]],
    *,
    shards: int,
    dim: int,
    source: str,
) -> list[ShardJob]:
    """Runs of rows, in the order of the files; ids count them."""
    ends = np.cumsum([len(numbers) for numbers in chosen])
    total = int(ends[-1])
    if shards > total:
        raise UserError(f"gallery.shards={shards} is more than the {total} rows: use fewer")
    borders = [number * total // shards for number in range(shards + 1)]
    jobs = []
    for number, (start, stop) in enumerate(pairwise(borders)):
        pieces = []
        for file, numbers, end in zip(files, chosen, ends, strict=True):
            first = int(end) - len(numbers)
            piece = numbers[max(0, start - first) : max(0, stop - first)]
            if len(piece):
                pieces.append((file, piece))
        jobs.append(
            ShardJob(
                folder=folder,
                number=number,
                first_id=start,
                dim=dim,
                source=source,
                pieces=tuple(pieces),
            )
        )
    return jobs


def _committed_shards(folder: Folder, source: str) -> tuple[ShardEntry, ...] | None:
    if not folder.exists(GALLERY):
        return None
    manifest = read_manifest(folder)
    if manifest.source != source:
        raise UserError(
            f"{folder.uri} holds a gallery of other embeddings or settings: build into another "
            "folder, or delete this one first"
        )
    return manifest.shards


def _finished_shard(job: ShardJob) -> ShardEntry | None:
    if not (job.folder.exists(rows_name(job.number)) and job.folder.exists(index_name(job.number))):
        return None
    rows_entry = _entry(job.folder, rows_name(job.number))
    index_entry = _entry(job.folder, index_name(job.number))
    with job.folder.fs.open(job.folder.path(rows_name(job.number)), "rb") as stream:
        metadata = pq.read_metadata(stream)
    footer = json.loads((metadata.metadata or {}).get(FOOTER_KEY, b"{}"))
    if footer != {"source": job.source, "index_sha256": index_entry.sha256}:
        return None
    return ShardEntry(index=index_entry, rows_file=rows_entry, rows=metadata.num_rows)


def _entry(folder: Folder, name: str) -> FileEntry:
    path = folder.path(name)
    size = int(folder.fs.size(path))
    return FileEntry(name=name, bytes=size, sha256=sha256_file(folder.fs, path))


def _digest(address: str) -> str:
    file = Folder.open(address)
    return sha256_file(file.fs, file.root)


def _remove_strays(folder: Folder, entries: Sequence[ShardEntry]) -> None:
    """Files of a killed build with more shards, and half-written ones."""
    folder.clean()
    listed = {file.name for entry in entries for file in entry.files}
    for name in [*folder.names(".faiss"), *folder.names(".parquet")]:
        if name.startswith(("shard-", "rows-")) and name not in listed:
            folder.fs.rm(folder.path(name))
