"""Is a gallery on disk what its manifest says?

Shapes: n vectors of a shard, D embedding dimension.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.errors import UserError
from pipelines.gallery.manifest import GalleryManifest, ShardEntry, read_manifest
from pipelines.gallery.shard import Shard, size_problem
from pipelines.store import Folder, sha256_file

BLOCK_ROWS = 8192
UNIT_TOLERANCE = 1e-3


def verify_gallery(uri: str | Path) -> list[str]:
    """Read every file of a gallery once and list what is wrong; empty if all is well.

    Checked: presence, size and SHA-256 of each file; unit vectors; one row a vector with the same
    id; no id twice, none at or above the manifest's `next_id`; the number of rows.

    Memory: one block of 8,192 vectors, one shard's rows, and 8 bytes a vector for the ids.

    Raises:
        UserError: there is no gallery, or its manifest cannot be read.
    """
    folder = Folder.open(str(uri))
    manifest = read_manifest(folder)
    problems = digest_problems(folder, manifest)
    if problems:
        return problems
    ids = []
    for entry in manifest.shards:
        try:
            shard = Shard(folder, entry, dim=manifest.embedding_dim)
            problems += _content_problems(folder, entry, shard)
            ids.append(shard.ids)
        except UserError as error:
            problems.append(str(error))
    return problems + _id_problems(np.concatenate([np.empty(0, np.int64), *ids]), manifest)


def digest_problems(folder: Folder, manifest: GalleryManifest) -> list[str]:
    """Files that are missing or differ in size or SHA-256 from the manifest."""
    problems = []
    for file in (file for shard in manifest.shards for file in shard.files):
        problem = size_problem(folder, file.name, file.bytes)
        if problem is None and sha256_file(folder.fs, folder.path(file.name)) != file.sha256:
            problem = "its SHA-256 is not the manifest's"
        if problem:
            problems.append(f"{folder.uri}/{file.name}: {problem}")
    return problems


def _content_problems(folder: Folder, entry: ShardEntry, shard: Shard) -> list[str]:
    problems = []
    rows = shard.rows(np.arange(len(shard)))
    if not np.array_equal(rows["id"].to_numpy(), shard.ids):
        problems.append(f"{folder.uri}/{entry.rows_file.name}: ids differ from {entry.index.name}")
    for start in range(0, len(shard), BLOCK_ROWS):
        block = shard.vectors[start : start + BLOCK_ROWS].astype(np.float64)
        off = np.abs(np.linalg.norm(block, axis=1) - 1)
        bad = np.flatnonzero(~(off <= UNIT_TOLERANCE))
        if len(bad):
            first = int(shard.ids[start + bad[0]])
            problems.append(f"{folder.uri}/{entry.index.name}: vector {first} is not of length 1")
            break
    return problems


def _id_problems(ids: npt.NDArray[np.int64], manifest: GalleryManifest) -> list[str]:
    problems = []
    if len(ids) != manifest.rows:
        problems.append(f"{len(ids)} vectors in the shards, not {manifest.rows}")
    if len(np.unique(ids)) != len(ids):
        problems.append("an id stands twice")
    if len(ids) and not (ids.min() >= 0 and ids.max() < manifest.next_id):
        problems.append(f"an id lies outside 0..{manifest.next_id - 1}")
    return problems
