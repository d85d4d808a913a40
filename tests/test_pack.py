"""Packing a shard: what goes to quarantine, what stops, and what the fingerprints cover."""

from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from pipelines.blocks import BLOCK_SCHEMA, read_rows, read_shard, write_shard
from pipelines.console import Reporter
from pipelines.datasets.manifest import MANIFEST_SCHEMA
from pipelines.errors import UserError
from pipelines.images import ImageError, intake
from pipelines.ingest import _source_fingerprint, plan_shards
from pipelines.pack import pack_shard
from pipelines.recipe_file import load_recipe
from pipelines.store import Folder


def rows_of(uris: list[str], time: int = 1) -> pa.Table:
    rows = [
        {
            "key": f"k{number}",
            "uri": uri,
            "identity": "x/1",
            "camera": "c1",
            "view": None,
            "time": time,
            "domain": "x",
            "split": "train",
            "role": "normal",
        }
        for number, uri in enumerate(uris)
    ]
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA)


def picture(path: Path) -> str:
    Image.new("RGB", (16, 32), 80).save(path)
    return str(path)


def test_missing_file_is_in_quarantine_and_is_looked_for_again(tmp_path: Path) -> None:
    uris = [picture(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    folder = Folder.open(str(tmp_path / "blocks")).make()
    first = pack_shard(folder, 0, rows_of(uris))
    assert [row["reason"] for row in first["quarantine"]] == ["no such file"]
    picture(tmp_path / "b.jpg")
    assert pack_shard(folder, 0, rows_of(uris))["quarantine"] == []


def test_a_read_that_fails_stops_the_shard_and_is_no_quarantine(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    folder = Folder.open(str(tmp_path / "blocks")).make()
    with pytest.raises(UserError, match="folder.jpg: cannot be read"):
        pack_shard(folder, 0, rows_of([str(tmp_path / "folder.jpg")]))
    assert folder.names(".parquet") == []


def test_content_fingerprint_covers_every_label_but_not_the_place(tmp_path: Path) -> None:
    here, there = picture(tmp_path / "a.jpg"), picture(tmp_path / "b.jpg")
    content = [
        pack_shard(Folder.open(str(tmp_path / name)).make(), 0, rows)["content"]
        for name, rows in (
            ("1", rows_of([here])),
            ("2", rows_of([there])),
            ("3", rows_of([here], time=2)),
        )
    ]
    assert content[0] == content[1]
    assert content[0] != content[2]


def test_source_fingerprint_covers_addresses_elsewhere() -> None:
    recipe = load_recipe("demo")
    one, other = rows_of(["s3://bucket/v1/a.jpg"]), rows_of(["s3://bucket/v2/a.jpg"])
    assert _source_fingerprint(recipe, one) != _source_fingerprint(recipe, other)


def labelled(rows: list[tuple[str, str, str]]) -> pa.Table:
    """(split, identity, role) of every row."""
    blank = dict.fromkeys(MANIFEST_SCHEMA.names)
    full = [
        {**blank, "key": f"{n:05d}", "split": split, "identity": identity, "role": role}
        for n, (split, identity, role) in enumerate(rows)
    ]
    return pa.Table.from_pylist(full, schema=MANIFEST_SCHEMA)


def test_shards_hold_whole_identities_but_distractors_are_cut() -> None:
    train = [("train", f"x/{i // 4}", "normal") for i in range(24)]
    gallery = [("gallery", "x/0000", "distractor")] * 50 + [("gallery", "x/7", "normal")] * 30
    cuts = plan_shards(labelled(train + gallery), 10)
    assert cuts[:2] == [(0, 12), (12, 24)]
    assert [stop - start for start, stop in cuts[2:]] == [10, 10, 10, 10, 10, 30]
    lone = plan_shards(labelled([("train", "x/1", "junk")] * 25), 10)
    assert lone == [(0, 25)]


@pytest.mark.parametrize(("start", "stop"), [(0, 3), (250, 260), (256, 512), (0, 600), (599, 600)])
def test_a_part_of_a_shard_is_a_slice_of_it(tmp_path: Path, start: int, stop: int) -> None:
    rows = labelled([("gallery", "x/1", "normal")] * 600)
    for name in ("sha256", "image"):
        values = [f"{name}{n}" for n in range(600)]
        rows = rows.append_column(name, pa.array(values).cast(BLOCK_SCHEMA.field(name).type))
    folder = Folder.open(str(tmp_path)).make()
    write_shard(folder, 0, rows, {})
    assert read_rows(folder, 0, start, stop).equals(rows.slice(start, stop - start))
    assert read_shard(folder, 0).equals(rows)


def test_text_like_picture_is_an_image_error() -> None:
    with pytest.raises(ImageError):
        intake(b"P3\n16 16\n255\n" + b"1 2 x " * 200)


def test_embedding_parts_depend_on_how_the_shards_are_cut(
    tmp_path: Path, tiny: tuple[str, ...], ray_session: None
) -> None:
    from pipelines.embed import plan_parts
    from pipelines.ingest import open_blocks
    from pipelines.store import Store

    store = Store.open(str(tmp_path))
    plans = []
    for rows in (4, 100):
        recipe = load_recipe("demo", [*tiny, f"data.rows_per_shard={rows}"])
        blocks = open_blocks(recipe, store, Reporter())
        plans.append([(p.shard, p.start, p.stop) for p in plan_parts(blocks, 8)])
    assert plans[0] != plans[1]
