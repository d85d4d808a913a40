"""One shard of images: read, check, write. What an ingest task runs, so it imports no more than
that needs."""

import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.blocks import BLOCK_SCHEMA, identity_borders, read_stats, shard_name, write_shard
from pipelines.errors import UserError
from pipelines.images import ImageError, intake
from pipelines.store import Folder, fingerprint, sha256_file


def pack_shard(folder: Folder, number: int, rows: pa.Table) -> dict[str, Any]:
    """Pack these manifest rows as one shard, unless a killed run did; returns its statistics and
    SHA-256."""
    stats = read_stats(folder, number)
    if stats is None or stats["quarantine"]:  # what was bad may have been mended
        stats = _pack(folder, number, rows)
    return {**stats, "sha256": sha256_file(folder.fs, folder.path(shard_name(number)))}


def _pack(folder: Folder, number: int, rows: pa.Table) -> dict[str, Any]:
    images: list[bytes | None] = []
    reasons: list[str | None] = []
    for uri in rows["uri"].to_pylist():
        try:
            images.append(intake(_read(uri)).data)
            reasons.append(None)
        except ImageError as error:
            images.append(None)
            reasons.append(str(error))
        except FileNotFoundError:
            images.append(None)
            reasons.append("no such file")
        except OSError as error:  # a network or a disk may be well again tomorrow: no quarantine
            raise UserError(f"{uri}: cannot be read ({error}); run the command again") from error
    sha = [None if image is None else hashlib.sha256(image).hexdigest() for image in images]
    table_ = rows.append_column("sha256", pa.array(sha, pa.string()))
    table_ = table_.append_column("image", pa.array(images, pa.binary()))
    bad = rows.append_column("reason", pa.array(reasons, pa.string())).filter(
        pc.is_valid(pa.array(reasons))
    )
    good = table_.filter(pc.is_valid(table_["image"])).select(BLOCK_SCHEMA.names)
    stats = _stats(number, rows, good, bad)
    write_shard(folder, number, good, stats)
    return stats


def _read(uri: str) -> bytes:
    if "://" not in uri:
        return Path(uri).read_bytes()
    with fsspec.open(uri, "rb") as file:
        return file.read()


def _stats(number: int, rows: pa.Table, good: pa.Table, bad: pa.Table) -> dict[str, Any]:
    labels = good.drop_columns(["uri", "image"]).to_pylist()
    identity = good["identity"].to_numpy(zero_copy_only=False)
    borders = identity_borders(identity)
    return {
        "shard": number,
        "split": rows["split"][0].as_py(),
        "rows": good.num_rows,
        "bytes": int(pc.sum(pc.binary_length(good["image"])).as_py() or 0),
        "content": f"{sum(int(fingerprint(row), 16) for row in labels) % 2**256:064x}",
        "identities": [
            [str(identity[a]), number, int(a), int(b - a)] for a, b in pairwise(borders)
        ],
        "quarantine": bad.to_pylist(),
    }
