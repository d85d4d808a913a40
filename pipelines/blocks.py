"""Blocks: Parquet shards of encoded images plus the manifest columns, and the index over them.

A shard holds rows of one split, sorted by (identity, key): whole identities, but for distractors
and junk, which are nobody and may be cut anywhere. `manifest.json` beside the shards says which
train identity lies where: any of its images is addressed as (shard, row) without reading pixels.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.datasets.manifest import MANIFEST_SCHEMA
from pipelines.errors import UserError
from pipelines.store import Folder

SCHEMA_VERSION = 2
GROUP_ROWS = 256
BLOCK_SCHEMA = pa.schema([*MANIFEST_SCHEMA, ("sha256", pa.string()), ("image", pa.binary())])
STATS_KEY = b"rayreid"


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.parquet"


def write_shard(folder: Folder, number: int, table_: pa.Table, stats: dict[str, Any]) -> None:
    """Write one shard, whole or not at all. `stats` travel in its footer."""
    schema = BLOCK_SCHEMA.with_metadata({STATS_KEY: json.dumps(stats)})
    uncompressed = {name: "NONE" if name == "image" else "ZSTD" for name in schema.names}
    with (
        folder.write(shard_name(number)) as file,
        pq.ParquetWriter(file, schema, compression=uncompressed) as writer,
    ):
        writer.write_table(table_.cast(schema), row_group_size=GROUP_ROWS)


def identity_borders(identity: np.ndarray) -> np.ndarray:
    """Positions where a new value starts, and the length: [0, ..., len]."""
    if len(identity) == 0:
        return np.zeros(1, dtype=np.int64)
    changes = np.flatnonzero(identity[1:] != identity[:-1]) + 1
    return np.concatenate([[0], changes, [len(identity)]])


def read_stats(folder: Folder, number: int) -> dict[str, Any] | None:
    """What `write_shard` noted in the footer, or None where there is no such shard."""
    if not folder.exists(shard_name(number)):
        return None
    with folder.fs.open(folder.path(shard_name(number)), "rb") as file:
        metadata = pq.read_metadata(file).metadata or {}
    return json.loads(metadata[STATS_KEY]) if STATS_KEY in metadata else None


def read_shard(folder: Folder, number: int, columns: list[str] | None = None) -> pa.Table:
    """One shard in memory; a `UserError` names a damaged file."""
    return read_rows(folder, number, 0, None, columns)


def read_rows(
    folder: Folder, number: int, start: int, stop: int | None, columns: list[str] | None = None
) -> pa.Table:
    """Rows start, ..., stop - 1 of a shard; a `UserError` names a damaged file.

    Memory: the row groups, of `GROUP_ROWS` rows, that hold them.
    """
    path = folder.path(shard_name(number))
    try:
        with folder.fs.open(path, "rb") as stream:
            file = pq.ParquetFile(stream)
            stop = file.metadata.num_rows if stop is None else stop
            first, last = start // GROUP_ROWS, -(-stop // GROUP_ROWS)
            table_ = file.read_row_groups(list(range(first, last)), columns=columns)
            return table_.slice(start - first * GROUP_ROWS, stop - start)
    except pa.ArrowException as error:
        raise UserError(
            f"{path}: damaged ({str(error).splitlines()[0]}); delete {folder.uri} "
            "and run the command again"
        ) from error


@dataclass(frozen=True)
class Blocks:
    """A committed ingest."""

    folder: Folder
    manifest: dict[str, Any]

    @classmethod
    def open(cls, uri: str) -> "Blocks":
        """The blocks in this folder; a `UserError` where they are not whole."""
        folder = Folder.open(uri)
        manifest = folder.committed()
        if manifest is None:
            raise UserError(f"{uri}: holds no committed blocks; run `reid ingest` first")
        if manifest["schema_version"] != SCHEMA_VERSION:
            raise UserError(
                f"{uri}: schema version {manifest['schema_version']}, not {SCHEMA_VERSION}"
            )
        return cls(folder=folder, manifest=manifest)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over keys, all labels and image bytes: the same images give it wherever they
        lie."""
        return str(self.manifest["fingerprint"])

    def shards(self, *splits: str) -> list[dict[str, Any]]:
        """Manifest entries (`shard`, `split`, `rows`, `bytes`, `sha256`) of these splits."""
        return [shard for shard in self.manifest["shards"] if shard["split"] in splits]

    def identities(self) -> list[tuple[str, int, int, int]]:
        """(identity, shard, first row, rows) of the train split, sorted by identity."""
        return [tuple(entry) for entry in self.manifest["identities"]]
