"""Images listed in a CSV or Parquet file."""

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.datasets import MANIFEST_SCHEMA, read_dataset
from tests.datasets.layouts import MARKET, refusal, touch


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
