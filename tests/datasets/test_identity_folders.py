"""A folder an identity, and the split that is drawn where none is given."""

import sys
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipelines.datasets import read_dataset
from pipelines.datasets.manifest import draw_splits
from tests.datasets.layouts import identities, refusal, touch


def test_folders_with_splits(tmp_path: Path) -> None:
    files = {"train/a": ["1.jpg"], "query/b": ["c01_1.jpg"], "gallery/b": ["x-c2.png", "3c.bmp"]}
    manifest = read_dataset("identity_folders", str(touch(tmp_path / "shop", files)))
    rows = {
        row["key"]: (row["identity"], row["camera"], row["split"], row["domain"])
        for row in manifest.to_pylist()
    }
    assert rows == {
        "train/a/1.jpg": ("shop/a", None, "train", "shop"),
        "query/b/c01_1.jpg": ("shop/b", "c1", "query", "shop"),
        "gallery/b/x-c2.png": ("shop/b", "c2", "gallery", "shop"),
        "gallery/b/3c.bmp": ("shop/b", None, "gallery", "shop"),
    }


def test_folders_without_splits(tmp_path: Path) -> None:
    files = {f"p{n}": ["c1_0.jpg", "c1_1.jpg", "c2_0.jpg"] for n in range(30)}
    root = touch(tmp_path / "shop", files)
    (root / "nobody").mkdir()
    manifest = read_dataset("identity_folders", str(root))
    train, test = identities(manifest, "train"), identities(manifest, "gallery")
    assert len(train) + len(test) == 30
    assert 5 < len(train) < 25
    queries = manifest.filter(pc.equal(manifest["split"], "query"))
    assert set(queries["key"].to_pylist()) == {
        f"{identity.removeprefix('shop/')}/{name}"
        for identity in test
        for name in ("c1_0.jpg", "c2_0.jpg")
    }


def test_folders_refuse(tmp_path: Path) -> None:
    assert "no such folder" in refusal("identity_folders", tmp_path / "gone")
    assert "holds no image" in refusal("identity_folders", tmp_path)
    loose = touch(tmp_path / "loose", {".": ["1.jpg"], "a": ["1.jpg"]})
    assert refusal("identity_folders", loose).startswith(str(loose / "1.jpg"))
    deep = touch(tmp_path / "deep", {"a/b": ["1.jpg"]})
    assert refusal("identity_folders", deep).startswith(str(deep / "a/b"))
    part = touch(tmp_path / "part", {"train/a": ["1.jpg"]})
    assert refusal("identity_folders", part).startswith(f"{part / 'query'}: no such folder")
    alone = touch(tmp_path / "alone", {"a": ["1.jpg", "2.jpg"]})
    assert "no image in the split train" in refusal("identity_folders", alone)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no UTF-8 exist on Linux only")
def test_a_file_name_that_is_not_text(tmp_path: Path) -> None:
    root = touch(tmp_path, {"a": ["1.jpg"]})
    (root / "a" / "b\udcff.jpg").touch()
    assert "is not UTF-8" in refusal("identity_folders", root)


def splits_reference(rows: list[tuple[str, str | None, str]]) -> list[str]:
    """Person by person, as the docstring of `draw_splits` tells it."""
    number = {
        person: int.from_bytes(blake2b(person.encode(), digest_size=8).digest(), "big")
        for person, _, _ in rows
    }
    lowest, highest = min(number.values()), max(number.values())
    split = {}
    for person, value in number.items():
        mine = sorted((row for row in rows if row[0] == person), key=lambda r: (r[1] or "~", r[2]))
        if value != highest and (value < 2**63 or value == lowest):
            split.update(dict.fromkeys(mine, "train"))
            continue
        seen: set[str | None] = set()
        for row in mine:
            split[row] = "gallery" if row[1] in seen else "query"
            seen.add(row[1])
        if all(split[row] == "query" for row in mine):
            split[mine[-1]] = "gallery"
    return [split[row] for row in rows]


@pytest.mark.parametrize("people", [2, 3, 40])
def test_drawn_splits_follow_the_rule(people: int) -> None:
    rows = [
        (f"p{n}", None if n % 5 == 0 else f"c{1 + i % (1 + n % 3)}", f"{n}-{i}.jpg")
        for i in reversed(range(4))
        for n in range(people)
        if i <= n % 4
    ]
    columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
    expected = splits_reference(rows)
    assert draw_splits(*columns).to_pylist() == expected
    assert {"train", "gallery"} <= set(expected)
    backwards = [pa.chunked_array([column[5:], column[:5]]) for column in columns]
    assert draw_splits(*backwards).to_pylist() == expected[5:] + expected[:5]


def test_an_identity_stays_on_its_side_while_data_grow() -> None:
    def sides(people: int) -> dict[str, bool]:
        names = pa.array([f"p{n}" for n in range(people) for _ in range(2)])
        keys = pa.array([f"{i}" for i in range(2 * people)])
        split = draw_splits(names, pa.nulls(len(names), pa.string()), keys).to_pylist()
        return {name: s == "train" for name, s in zip(names.to_pylist(), split, strict=True)}

    few, many = sides(50), sides(500)
    assert all(many[name] == side for name, side in few.items())
