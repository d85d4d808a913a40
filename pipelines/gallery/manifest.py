"""`gallery.json`: what a gallery is made of. Written last, it is the commit of a gallery folder.

| file | content |
| --- | --- |
| `gallery.json` | model, dimension, metric, index, shards with SHA-256, evaluation |
| `shard-00000.faiss` | vectors under explicit int64 ids |
| `rows-00000.parquet` | id, key, uri, identity, camera, ... in the order of the shard's vectors |
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa

from pipelines.datasets.manifest import MANIFEST_SCHEMA
from pipelines.errors import UserError
from pipelines.store import Folder

GALLERY = "gallery.json"
SCHEMA_VERSION = 1
INDEXES = ("flat",)
METRIC = "cosine"
"""Inner product of unit vectors."""
ROWS_SCHEMA = pa.schema([("id", pa.int64()), *(f for f in MANIFEST_SCHEMA if f.name != "split")])


def index_name(number: int) -> str:
    """File name of a shard's vectors."""
    return f"shard-{number:05d}.faiss"


def rows_name(number: int) -> str:
    """File name of a shard's rows."""
    return f"rows-{number:05d}.parquet"


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of the gallery as it was committed."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One shard: vectors and their rows."""

    index: FileEntry
    rows_file: FileEntry
    rows: int
    """Vectors in the shard."""

    @property
    def files(self) -> tuple[FileEntry, FileEntry]:
        return self.index, self.rows_file


@dataclass(frozen=True, kw_only=True)
class GalleryManifest:
    """The content of `gallery.json`."""

    model: Mapping[str, Any]
    """What made the vectors: name, version, run, weights_sha256, as far as known."""
    embedding_dim: int
    metric: str
    index: str
    """`flat`: exact."""
    rows: int
    next_id: int
    """The first id that was never given out; an erased id does not come back."""
    shards: tuple[ShardEntry, ...]
    source: str
    """Fingerprint of the embeddings and the settings that the shards depend on."""
    evaluation: Mapping[str, Any] | None
    """Figures of these embeddings with their protocol."""
    evaluation_fingerprint: str | None
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """JSON-able content."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> "GalleryManifest":
        """The reverse of `to_dict`."""
        shards = tuple(
            ShardEntry(
                index=FileEntry(**shard["index"]),
                rows_file=FileEntry(**shard["rows_file"]),
                rows=shard["rows"],
            )
            for shard in plain["shards"]
        )
        return cls(**{f.name: plain[f.name] for f in fields(cls)} | {"shards": shards})


def read_manifest(folder: Folder) -> GalleryManifest:
    """The manifest of a committed gallery.

    Raises:
        UserError: there is no gallery, or its manifest is damaged or of a newer version.
    """
    if not folder.exists(GALLERY):
        raise UserError(
            f"no gallery at {folder.uri} ({GALLERY} is missing): check the path, or run the same "
            "`reid gallery build` command again"
        )
    plain = folder.read_json(GALLERY)
    try:
        version = plain["schema_version"]
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{folder.uri}/{GALLERY} has schema version {version}, this program reads "
                f"{SCHEMA_VERSION}: update rayreid or build the gallery again"
            )
        return GalleryManifest.from_dict(plain)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder.uri}/{GALLERY} is damaged ({error!r}): build the gallery again"
        ) from error
