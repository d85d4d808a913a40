"""PKU VehicleID: lists without suffixes, one image a vehicle drawn to the gallery."""

from hashlib import blake2b
from pathlib import Path

import pytest

from pipelines.datasets import MANIFEST_SCHEMA, list_datasets, read_dataset
from tests.datasets.layouts import counts, identities, refusal, touch

TRAIN = [("0000001", "1"), ("0000002", "1"), ("0000003", "22")]
TEST = [(f"{100 + n:07}", str(500 + n % 7)) for n in range(40)] + [("0000900", "999")]
LARGER = [*TEST, *((f"{300 + n:07}", str(700 + n % 3)) for n in range(9))]


def vehicleid(root: Path, *, test: list[tuple[str, str]] = TEST) -> Path:
    names = {name for name, _ in (*TRAIN, *LARGER)}
    touch(root, {"image": [f"{name}.jpg" for name in sorted(names)], "train_test_split": []})
    for file, rows in (
        ("train_list", TRAIN),
        ("test_list_800", test),
        ("test_list_1600", LARGER),
        ("test_list_13164", LARGER[:20]),
    ):
        text = "".join(f"{name} {vehicle}\n" for name, vehicle in rows)
        (root / "train_test_split" / f"{file}.txt").write_text(text)
    return root


def gallery_reference(rows: list[tuple[str, str]]) -> set[str]:
    """Vehicle by vehicle, the image whose hash is lowest."""
    best: dict[str, tuple[bytes, str]] = {}
    for name, vehicle in rows:
        key = f"image/{name}.jpg"
        number = blake2b(key.encode(), digest_size=8).digest()
        best[vehicle] = min(best.get(vehicle, (number, key)), (number, key))
    return {key for _, key in best.values()}


def reference(root: Path, test: list[tuple[str, str]]) -> list[dict[str, object]]:
    gallery = gallery_reference(test)
    rows = []
    for part, listed in (("train", TRAIN), ("test", test)):
        for name, vehicle in listed:
            key = f"image/{name}.jpg"
            split = "gallery" if key in gallery else "query"
            rows.append(
                {
                    "key": key,
                    "uri": str(root / key),
                    "identity": f"vehicleid/{vehicle}",
                    "camera": None,
                    "view": None,
                    "time": None,
                    "domain": "vehicleid",
                    "split": "train" if part == "train" else split,
                    "role": "normal",
                }
            )
    return sorted(rows, key=lambda row: (row["split"], row["identity"], row["key"]))


def test_rows(tmp_path: Path) -> None:
    root = vehicleid(tmp_path / "VehicleID_V1.0")
    manifest = read_dataset("vehicleid", str(tmp_path))
    assert manifest.schema == MANIFEST_SCHEMA
    assert manifest.to_pylist() == reference(root, TEST)
    assert read_dataset("vehicleid:800", str(root)).equals(manifest)
    assert counts(manifest) == {"train": 3, "query": 33, "gallery": 8}


def test_the_list_is_the_variant(tmp_path: Path) -> None:
    root = vehicleid(tmp_path)
    larger = read_dataset("vehicleid:1600", str(root))
    assert larger.to_pylist() == reference(root, LARGER)
    smaller = read_dataset("vehicleid:13164", str(root))
    assert smaller.to_pylist() == reference(root, LARGER[:20])


def test_the_draw_is_of_the_rows_and_not_of_their_order(tmp_path: Path) -> None:
    first = read_dataset("vehicleid", str(vehicleid(tmp_path / "a"))).drop_columns("uri")
    turned = vehicleid(tmp_path / "b", test=TEST[::-1])
    assert read_dataset("vehicleid", str(turned)).drop_columns("uri").equals(first)
    first_listed = {f"image/{name}.jpg" for name, _ in TEST[:7]}
    assert not first_listed <= gallery_reference(TEST)


def test_a_vehicle_with_one_image_is_in_the_gallery_alone(tmp_path: Path) -> None:
    manifest = read_dataset("vehicleid", str(vehicleid(tmp_path)))
    assert "vehicleid/999" in identities(manifest, "gallery")
    assert "vehicleid/999" not in identities(manifest, "query")
    assert len(identities(manifest, "gallery")) == counts(manifest)["gallery"]


def test_official_figures() -> None:
    variants = list_datasets()["vehicleid"].variants
    queries = {name: variants[name].counts["query"].images for name in ("800", "1600", "2400")}
    assert queries == {"800": 5_693, "1600": 11_777, "2400": 17_377}
    assert "query" not in variants["13164"].counts
    assert all(variant.counts["train"].identities == 13_164 for variant in variants.values())


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("train_list.txt", "0000001\n", "line 1 is '0000001' and not NAME VEHICLE"),
        ("test_list_800.txt", "0000100 1 1\n", "line 1 is '0000100 1 1'"),
        ("test_list_800.txt", "0000100 500\n../0000101 500\n", "line 2 is '../0000101 500'"),
        ("test_list_800.txt", "\n\n", "lists nothing"),
    ],
)
def test_refuses_lines(file: str, text: str, says: str, tmp_path: Path) -> None:
    root = vehicleid(tmp_path)
    (root / "train_test_split" / file).write_text(text)
    message = refusal("vehicleid", root)
    assert message.startswith(str(root / "train_test_split" / file))
    assert says in message


def test_refuses(tmp_path: Path) -> None:
    assert "holds none of image, train_test_split" in refusal("vehicleid", tmp_path)
    root = vehicleid(tmp_path / "a")
    missing = root / "train_test_split/test_list_2400.txt"
    assert refusal("vehicleid:2400", root).startswith(f"{missing}: no such file")
    assert "there are vehicleid:800, vehicleid:1600" in refusal("vehicleid:900", root)
    leak = vehicleid(tmp_path / "b", test=[*TEST, ("0000003", "22")])
    assert "the key image/0000003.jpg stands for more than one image" in refusal("vehicleid", leak)
    leak = vehicleid(tmp_path / "c", test=[*TEST, ("0000004", "22")])
    assert "first vehicleid/22" in refusal("vehicleid", leak)
