"""Layouts on disk to one manifest: what is read, what is refused and in which words."""

import datetime
import re
import sys
from collections import defaultdict
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.datasets import MANIFEST_SCHEMA, list_datasets, read_dataset
from pipelines.datasets.manifest import draw_splits
from pipelines.errors import UserError

MARKET = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c2s1_000301_01.jpg"],
    "query": ["0003_c1s6_015971_00.jpg", "0004_c2s3_000010_00.jpg.jpg"],
    "bounding_box_test": [
        "0003_c3s6_015971_00.jpg",
        "0004_c6s1_999999_12.JPG",
        "0000_c4s2_000001_00.jpg",
        "-1_c5s1_000001_00.jpg",
    ],
}
SPLIT_OF = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}


def touch(root: Path, files: dict[str, list[str]]) -> Path:
    for folder, names in files.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (root / folder / name).touch()
    return root


def refusal(name: str, root: Path | str | None) -> str:
    with pytest.raises(UserError) as caught:
        read_dataset(name, None if root is None else str(root))
    text = str(caught.value)
    assert "\n" not in text
    return text


def counts(manifest: pa.Table) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(manifest["split"]).to_pylist()}


def identities(manifest: pa.Table, split: str) -> set[str]:
    known = manifest.filter(
        pc.and_(pc.equal(manifest["split"], split), pc.equal(manifest["role"], "normal"))
    )
    return set(known["identity"].to_pylist())


def test_names_and_roots_are_asked_for() -> None:
    assert set(list_datasets()) == {"market1501", "pku_reid", "identity_folders", "table", "drawn"}
    assert all("\n" not in found.layout for found in list_datasets().values())
    assert "did you mean market1501?" in refusal("market-1501", "/")
    assert "data.root" in refusal("market1501", None)
    assert "dataset=table" in refusal("market1501", "s3://bucket/market")


def market_reference(root: Path) -> list[dict[str, object]]:
    """One file after the other, by the published regular expression."""
    rows = []
    for folder, split in SPLIT_OF.items():
        for path in (root / folder).iterdir():
            match = re.match(r"(-1|\d{4})_c([1-6])s(\d)_(\d{6})_(\d{2})\.", path.name)
            assert match, path
            pid, camera, sequence, frame, _ = match.groups()
            rows.append(
                {
                    "key": f"{folder}/{path.name}",
                    "uri": str(path),
                    "identity": f"market1501/{pid}",
                    "camera": f"c{camera}",
                    "view": None,
                    "time": int(sequence) * 10**6 + int(frame),
                    "domain": "market1501",
                    "split": split,
                    "role": {"-1": "junk", "0000": "distractor"}.get(pid, "normal"),
                }
            )
    return sorted(rows, key=lambda row: (row["split"], row["identity"], row["key"]))


def test_market_rows(tmp_path: Path) -> None:
    root = touch(tmp_path / "Market-1501-v15.09.15", MARKET)
    expected = market_reference(root)
    touch(root, {"query": ["Thumbs.db", ".DS_Store", "._0003_c1s6_015971_00.jpg", "readme.txt"]})
    manifest = read_dataset("market1501", str(root))
    assert manifest.schema == MANIFEST_SCHEMA
    assert manifest.to_pylist() == expected
    assert read_dataset("market1501", str(tmp_path)).equals(manifest)


def test_market_reads_larger_sets(tmp_path: Path) -> None:
    files = {folder: list(names) for folder, names in MARKET.items()}
    files["bounding_box_test"].append("12345_c27s1_000001_00.png")
    manifest = read_dataset("drawn", str(touch(tmp_path, files)))
    row = manifest.filter(pc.equal(manifest["identity"], "drawn/12345")).to_pylist()
    assert [(r["camera"], r["domain"]) for r in row] == [("c27", "drawn")]


@pytest.mark.parametrize(
    "name", ["portrait.jpg", "002_c1s1_000451_03.jpg", "0002_c1_000451_03.jpg", "0002_c1s1_451.jpg"]
)
def test_market_refuses_names(name: str, tmp_path: Path) -> None:
    touch(tmp_path, MARKET)
    touch(tmp_path, {"query": [name]})
    text = refusal("market1501", tmp_path)
    assert text.startswith(str(tmp_path / "query" / name))
    assert "PPPP_cCsS_FFFFFF_BB.jpg" in text


def test_market_refuses_folders(tmp_path: Path) -> None:
    assert "no such folder" in refusal("market1501", tmp_path / "gone")
    assert "holds none of bounding_box_train" in refusal("market1501", tmp_path)
    (tmp_path / "file").touch()
    assert "is not a folder" in refusal("market1501", tmp_path / "file")
    two = {folder: names for folder, names in MARKET.items() if folder != "query"}
    root = touch(tmp_path / "two", two)
    assert refusal("market1501", root).startswith(f"{root / 'query'}: no such folder")
    touch(root, {"query": ["Thumbs.db"]})
    assert "no image in the split query" in refusal("market1501", root)
    bare = touch(tmp_path / "bare", {folder: [] for folder in MARKET})
    assert "holds no image" in refusal("market1501", bare)


def test_market_counts(data_root: Path) -> None:
    manifest = read_dataset("market1501", str(data_root))
    assert counts(manifest) == {"train": 12_936, "query": 3_368, "gallery": 19_732}
    not_junk = manifest.filter(pc.not_equal(manifest["role"], "junk"))
    assert counts(not_junk)["gallery"] == 15_913
    sizes = [len(identities(manifest, split)) for split in ("train", "query", "gallery")]
    assert sizes == [751, 750, 750]
    assert set(manifest["camera"].to_pylist()) == {f"c{n}" for n in range(1, 7)}
    assert manifest.to_pylist() == market_reference(data_root / "Market-1501-v15.09.15")


PKU = {
    "train/001": ["01_1.png", "02_8.png"],
    "val/query/004": ["01_3.png"],
    "val/gallery/004": ["01_3.png", "02_5.png"],
    "val/all_imgs/004": ["01_3.png", "02_5.png"],
}


def test_pku_rows(tmp_path: Path) -> None:
    manifest = read_dataset("pku_reid", str(touch(tmp_path / "pku-reid-col780", PKU)))
    rows = [
        tuple(row[name] for name in ("key", "identity", "camera", "view", "split", "role"))
        for row in manifest.to_pylist()
    ]
    assert rows == [
        ("val/gallery/004/01_3.png", "pku_reid/004", "c1", "3", "gallery", "normal"),
        ("val/gallery/004/02_5.png", "pku_reid/004", "c2", "5", "gallery", "normal"),
        ("val/query/004/01_3.png", "pku_reid/004", "c1", "3", "query", "normal"),
        ("train/001/01_1.png", "pku_reid/001", "c1", "1", "train", "normal"),
        ("train/001/02_8.png", "pku_reid/001", "c2", "8", "train", "normal"),
    ]
    assert read_dataset("pku_reid", str(tmp_path)).equals(manifest)


def test_pku_refuses(tmp_path: Path) -> None:
    root = touch(tmp_path, PKU)
    touch(root, {"val/query/004": ["front.png"]})
    assert refusal("pku_reid", root).startswith(str(root / "val/query/004/front.png"))
    bare = touch(tmp_path / "bare", {"train": [], "val/query": [], "val/gallery": []})
    assert "holds no person's folder" in refusal("pku_reid", bare)


def test_pku_counts(data_root: Path) -> None:
    manifest = read_dataset("pku_reid", str(data_root))
    assert counts(manifest) == {"train": 992, "query": 28, "gallery": 181}
    assert len(identities(manifest, "train")) == 62
    assert identities(manifest, "query") == identities(manifest, "gallery")
    assert len(identities(manifest, "query")) == 12
    content = defaultdict(set)
    for row in manifest.to_pylist():
        content[row["split"]].add((row["camera"], Path(row["uri"]).read_bytes()))
    assert len(content["query"] & content["gallery"]) == 17


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


def write_csv(path: Path, text: str) -> Path:
    path.write_text(text.replace(" ", ""))
    return path


SPLITS_CSV = """uri,identity,split,camera,time
a.jpg,0001,train,,7
/data/b.jpg,2,query,c1,8
s3://bucket/c.jpg,2,gallery,NA,
"""


def test_table_csv(tmp_path: Path) -> None:
    manifest = read_dataset("table", str(write_csv(tmp_path / "shop.csv", SPLITS_CSV)))
    assert manifest.schema == MANIFEST_SCHEMA
    rows = {row["key"]: row for row in manifest.to_pylist()}
    assert {key: row["uri"] for key, row in rows.items()} == {
        "a.jpg": str(tmp_path / "a.jpg"),
        "/data/b.jpg": "/data/b.jpg",
        "s3://bucket/c.jpg": "s3://bucket/c.jpg",
    }
    assert rows["a.jpg"]["identity"] == "shop/0001"
    assert [rows[key]["camera"] for key in rows] == ["NA", "c1", None]
    assert {key: row["time"] for key, row in rows.items()} == {
        "a.jpg": 7,
        "/data/b.jpg": 8,
        "s3://bucket/c.jpg": None,
    }


def test_table_parquet_types(tmp_path: Path) -> None:
    noon = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "uri": ["a.jpg", "b.jpg", "c.jpg"],
            "identity": [1, 2, 2],
            "camera": pa.array(["x", "y", "z"]).dictionary_encode(),
            "split": ["train", "query", "gallery"],
            "time": pa.array([noon] * 3, pa.timestamp("us", "UTC")),
            "role": [None, "normal", "normal"],
            "weather": ["sun"] * 3,
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    manifest = read_dataset("table", str(tmp_path / "t.parquet"))
    assert set(manifest["identity"].to_pylist()) == {"t/1", "t/2"}
    assert set(manifest["time"].to_pylist()) == {int(noon.timestamp() * 1000)}
    assert set(manifest["role"].to_pylist()) == {"normal"}
    assert set(manifest["camera"].to_pylist()) == {"x", "y", "z"}


def test_a_manifest_is_a_table_that_reads_back_as_itself(tmp_path: Path) -> None:
    manifest = read_dataset("market1501", str(touch(tmp_path / "m", MARKET)))
    pq.write_table(manifest, tmp_path / "copy.parquet")
    assert read_dataset("table", str(tmp_path / "copy.parquet")).equals(manifest)


def test_table_without_split_has_the_same_one_drawn(tmp_path: Path) -> None:
    rows = [(f"p{n}/{i}.jpg", f"p{n}") for n in range(12) for i in range(3)]
    lines = "\n".join(f"{uri},{identity}" for uri, identity in rows)
    path = write_csv(tmp_path / "shop.csv", f"uri,identity\n{lines}\n")
    folders = touch(tmp_path / "shop", {f"p{n}": [f"{i}.jpg" for i in range(3)] for n in range(12)})
    by_table, by_folder = (
        read_dataset(name, str(root)).select(["key", "identity", "split"])
        for name, root in (("table", path), ("identity_folders", folders))
    )
    assert by_table.equals(by_folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("uri,identity\n", "lists no image"),
        ("", "cannot be read as a table"),
        ("uri,camera\na.jpg,c1\n", "has no column identity; it has uri, camera"),
        ("uri,Identity\na.jpg,1\n", "unknown column 'Identity'; did you mean 'identity'?"),
        ("uri,identity,camera_id\na.jpg,1,c1\n", "did you mean 'camera'?"),
        ("uri,identity,uri\na.jpg,1,a.jpg\n", "column uri is there twice"),
        ("uri,identity\na.jpg,1\nb.jpg\n", "cannot be read as a table"),
        ("uri,identity\na.jpg,1\nb.jpg,\n", "row 2 has no identity"),
        ("uri,identity\na.jpg,1\na.jpg,1\nb.jpg,2\nc.jpg,2\n", "the key a.jpg stands for more"),
        ("uri,identity,split\na.jpg,1,train\nb.jpg,2,test\n", "split 'test' is none of train"),
        ("uri,identity,split\na.jpg,1,train\nb.jpg,2,query\n", "no image in the split gallery"),
        (SPLITS_CSV.replace("time", "role"), "role '7' is none of normal, distractor, junk"),
        (SPLITS_CSV.replace(",8", ",soon"), "the column time is of type string"),
        (SPLITS_CSV.replace("0001", "2"), "in train and query, first shop/2"),
        (SPLITS_CSV.replace("2,query", "3,query"), "no identity of the query split"),
    ],
)
def test_table_refuses(text: str, says: str, tmp_path: Path) -> None:
    path = write_csv(tmp_path / "shop.csv", text)
    message = refusal("table", path)
    assert message.startswith(str(path))
    assert says in message


def test_table_refuses_files_and_types(tmp_path: Path) -> None:
    assert "no such file" in refusal("table", tmp_path / "gone.csv")
    assert "is a folder" in refusal("table", tmp_path)
    (tmp_path / "t.xlsx").touch()
    assert ".csv or a .parquet" in refusal("table", tmp_path / "t.xlsx")
    (tmp_path / "t.parquet").write_bytes(b"no table")
    assert "cannot be read as a table" in refusal("table", tmp_path / "t.parquet")
    pq.write_table(pa.table({"uri": ["a"], "identity": [1.5]}), tmp_path / "f.parquet")
    assert "the column identity is of type double" in refusal("table", tmp_path / "f.parquet")
