"""Images to blocks, on Ray Data.

The driver reads the dataset's manifest table (no pixels) and cuts it into shards; one Ray task a
shard reads, checks and packs the images. A shard appears under its name only when it is complete,
and the folder's manifest is written last; a killed ingest goes on with the shards that are missing.

Memory: the manifest table on the driver (about 200 bytes an image), and one shard of encoded
images a task.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from pipelines.blocks import (
    SCHEMA_VERSION,
    Blocks,
    identity_borders,
)
from pipelines.console import Reporter
from pipelines.datasets import read_dataset
from pipelines.datasets.manifest import MANIFEST_SCHEMA
from pipelines.datasets.transfer import Transfer
from pipelines.errors import UserError
from pipelines.pack import pack_shard
from pipelines.ray_session import ray_session
from pipelines.recipe import Recipe
from pipelines.stage import StageResult, once, stage_script
from pipelines.store import Folder, Store, fingerprint

QUARANTINE = "quarantine.parquet"
QUARANTINE_SCHEMA = pa.schema([*MANIFEST_SCHEMA, ("reason", pa.string())])


@once
def run(recipe: Recipe, store: Store, reporter: Reporter) -> StageResult:
    """Make the recipe's blocks, or find them made."""
    root = _drawn_root(recipe, store, reporter) if recipe.dataset == "drawn" else recipe.data.root
    manifest = read_dataset(recipe.dataset, root, _transfer(recipe))
    source = _source_fingerprint(recipe, manifest)
    folder = store.room("blocks", recipe.dataset_title, source)
    with folder.lock():
        done = folder.committed()
        if done is None:
            with ray_session(verbose=reporter.verbose):
                done = _ingest(recipe, manifest, folder, reporter)
            skipped = False
        else:
            skipped = True
    if done["quarantined"]:
        reporter.say(
            f"{done['quarantined']} of {manifest.num_rows} images in quarantine: "
            f"{folder.uri}/{QUARANTINE}"
        )
    return StageResult(
        stage="ingest",
        skipped=skipped,
        uri=folder.uri,
        values={
            "blocks": folder.uri,
            "fingerprint": done["fingerprint"],
            "images": sum(shard["rows"] for shard in done["shards"]),
            "identities": len(done["identities"]),
            "quarantined": done["quarantined"],
        },
    )


def open_blocks(recipe: Recipe, store: Store, reporter: Reporter) -> Blocks:
    """The recipe's blocks, made first if need be."""
    return Blocks.open(run(recipe, store, reporter).uri)


def _transfer(recipe: Recipe) -> Transfer:
    data = recipe.data
    return Transfer(
        sources=data.sources,
        target=data.target,
        source_images=data.source_images,
        roots=data.roots,
    )


def _drawn_root(recipe: Recipe, store: Store, reporter: Reporter) -> str:
    from pipelines.datasets.drawn import DrawnConfig, draw_dataset

    section = recipe.drawn.model_dump()
    folder = store.room("drawn", "drawn", fingerprint(section))
    with folder.lock():
        if folder.committed() is None:
            reporter.say(f"drawing figures into {folder.uri}")
            images = draw_dataset(DrawnConfig(**section), folder.local("images"))
            folder.commit({"images": images, "drawn": section})
    return str(folder.local("images"))


def _source_fingerprint(recipe: Recipe, manifest: pa.Table) -> str:
    """Changes when a file is added, removed, rewritten or relabelled.

    Local files are told apart by size and modification time; files elsewhere by their address
    alone.
    """
    digest = hashlib.sha256()
    for uri in manifest["uri"].to_pylist():
        if "://" in uri:
            digest.update(f"{uri}\n".encode())
        elif Path(uri).exists():
            stat = Path(uri).stat()
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
    labels = manifest.drop_columns(["uri"])
    for name in labels.column_names:
        digest.update("\n".join(map(str, labels[name].to_pylist())).encode())
    return fingerprint(
        SCHEMA_VERSION, recipe.dataset, recipe.data.rows_per_shard, digest.hexdigest()
    )


def plan_shards(manifest: pa.Table, rows_per_shard: int) -> list[tuple[int, int]]:
    """(start, stop) rows of the sorted manifest, cut where an identity or a split ends.

    A shard is closed at the first identity border at or after `rows_per_shard` rows. Distractors
    and junk are nobody: outside the train split a cut may lie between any two of them, so half a
    million do not make one shard.
    """
    split = manifest["split"].to_numpy(zero_copy_only=False)
    identity = manifest["identity"].to_numpy(zero_copy_only=False)
    nobody = np.asarray(pc.not_equal(manifest["role"], "normal")) & (split != "train")
    borders = np.union1d(identity_borders(identity), identity_borders(split))
    borders = np.union1d(borders, np.flatnonzero(nobody[1:] & nobody[:-1]) + 1)
    split_ends = set(identity_borders(split).tolist())
    cuts, start = [], 0
    for stop in borders[1:].tolist():
        if stop - start >= rows_per_shard or stop in split_ends:
            cuts.append((start, stop))
            start = stop
    return cuts


def _ingest(
    recipe: Recipe, manifest: pa.Table, folder: Folder, reporter: Reporter
) -> dict[str, Any]:
    folder.make()
    cuts = plan_shards(manifest, recipe.data.rows_per_shard)
    plan = [{"shard": n, "start": start, "stop": stop} for n, (start, stop) in enumerate(cuts)]
    ref = ray.put(manifest)

    def pack(row: dict[str, int]) -> dict[str, Any]:
        start, stop = row["start"], row["stop"]
        stats = pack_shard(folder, row["shard"], ray.get(ref).slice(start, stop - start))
        return {"shard": row["shard"], "stats": json.dumps(stats)}

    packed = ray.data.from_items(plan, override_num_blocks=len(plan)).map(pack, num_cpus=1)
    stats: dict[int, dict[str, Any]] = {}
    with reporter.bar("ingest", total=len(plan), unit="shards") as bar:
        for row in packed.iter_rows():
            stats[row["shard"]] = json.loads(row["stats"])
            bar.advance(1)
    return _commit(recipe, folder, [stats[n] for n in range(len(plan))], manifest.num_rows)


def _commit(
    recipe: Recipe, folder: Folder, stats: list[dict[str, Any]], total: int
) -> dict[str, Any]:
    bad = [row for stat in stats for row in stat["quarantine"]]
    with folder.write(QUARANTINE) as file:
        pq.write_table(pa.Table.from_pylist(bad, schema=QUARANTINE_SCHEMA), file)
    if len(bad) > recipe.data.quarantine_limit * total:
        more = (
            f" and {len(bad) - 1} more, listed in {folder.uri}/{QUARANTINE}" if len(bad) > 1 else ""
        )
        limit = recipe.data.quarantine_limit
        raise UserError(
            f"{bad[0]['uri']}: {bad[0]['reason']}{more}; mend or remove {len(bad)} of {total} "
            f"images, or raise data.quarantine_limit={limit}"
        )
    identities = [e for stat in stats if stat["split"] == "train" for e in stat["identities"]]
    kept = ("shard", "split", "rows", "bytes", "sha256")
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "dataset": recipe.dataset,
        "fingerprint": f"{sum(int(stat['content'], 16) for stat in stats) % 2**256:064x}",
        "images": dict(_count(stats)),
        "identities": identities,
        "quarantined": len(bad),
        "shards": [{k: stat[k] for k in kept} for stat in stats],
    }
    folder.commit(manifest)
    return manifest


def _count(stats: list[dict[str, Any]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for stat in stats:
        counts[stat["split"]] += stat["rows"]
    return counts


if __name__ == "__main__":
    stage_script("ingest")
