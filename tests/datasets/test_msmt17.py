"""MSMT17: three layouts, two training sets, people counted twice from 0."""

from pathlib import Path

import pytest

from pipelines.datasets import list_datasets, read_dataset
from tests.datasets.layouts import counts, identities, refusal, touch

LISTS = {
    "train": "0000/0000_000_01_0303morning_0008_0.jpg 0\n"
    "0001/0001_000_02_0303noon_0100_1_ex.jpg 1\n",
    "val": "0000/0000_005_15_0113afternoon_1234_2.jpg 0\n",
    "query": "0000/0000_001_03_0302morning_0010_0.jpg 0\n0012/0012_000_04_0302noon_0010_1.jpg 12\n",
    "gallery": "0000/0000_000_05_0302morning_0020_0.jpg 0\n"
    "0012/0012_003_06_0302noon_0015.jpg 12\n"
    "0012/0012_004_07.jpg 12\n",
}
FOLDERS = {"V1": ("train", "test"), "V2": ("mask_train_v2", "mask_test_v2")}
PARTS = {"morning": 0, "noon": 1, "afternoon": 2}
REPACK = {
    "bounding_box_train": ["0000_c01_0000.jpg", "0001_c15_0001.jpg"],
    "query": ["0000_c03_0002.jpg"],
    "bounding_box_test": ["0000_c14_0003.jpg", "0012_c6_0004.png"],
}


def write_release(root: Path, release: str) -> Path:
    """Lists, and the folders without the images: nothing but ingest opens those."""
    touch(root, {folder: [] for folder in FOLDERS[release]})
    for name, text in LISTS.items():
        (root / f"list_{name}.txt").write_text(text)
    return root


def release_reference(root: Path, release: str, names: list[str]) -> list[dict[str, object]]:
    """One line after the other, with names split at `_`."""
    train, test = FOLDERS[release]
    rows = []
    for name in names:
        split = "train" if name in ("train", "val") else name
        folder = train if split == "train" else test
        for line in LISTS[name].splitlines():
            path, person = line.split(" ")
            fields = path.rsplit("/", 1)[1].removesuffix(".jpg").split("_")
            time = None
            if len(fields) > 4:
                day = int(fields[3][:4]) * 3 + PARTS[fields[3][4:]]
                time = day * 10_000_000 + int(fields[4])
            rows.append(
                {
                    "key": f"{folder}/{path}",
                    "uri": str(root / folder / path),
                    "identity": f"msmt17/{'' if split == 'train' else 'test-'}{int(person):04d}",
                    "camera": f"c{int(fields[2])}",
                    "view": None,
                    "time": time,
                    "domain": "msmt17",
                    "split": split,
                    "role": "normal",
                }
            )
    return sorted(rows, key=lambda row: (row["split"], row["identity"], row["key"]))


@pytest.mark.parametrize("release", FOLDERS)
@pytest.mark.parametrize("name", ["", "MSMT17"])
def test_lists(release: str, name: str, tmp_path: Path) -> None:
    root = write_release(tmp_path / (name or f"MSMT17_{release}"), release)
    manifest = read_dataset("msmt17", str(root))
    assert manifest.to_pylist() == release_reference(root, release, list(LISTS))
    assert read_dataset("msmt17", str(tmp_path)).equals(manifest)
    assert read_dataset("msmt17:trainval", str(root)).equals(manifest)


def test_without_the_validation_list(tmp_path: Path) -> None:
    root = write_release(tmp_path, "V1")
    (root / "list_val.txt").unlink()
    manifest = read_dataset("msmt17:train", str(root))
    assert manifest.to_pylist() == release_reference(root, "V1", ["train", "query", "gallery"])
    assert counts(manifest) == {"train": 2, "query": 2, "gallery": 3}
    assert refusal("msmt17", root).startswith(f"{root / 'list_val.txt'}: no such file")


def test_people_counted_from_0_twice_are_others(tmp_path: Path) -> None:
    manifest = read_dataset("msmt17", str(write_release(tmp_path, "V1")))
    assert identities(manifest, "train") == {"msmt17/0000", "msmt17/0001"}
    assert identities(manifest, "query") == {"msmt17/test-0000", "msmt17/test-0012"}
    assert identities(manifest, "gallery") == {"msmt17/test-0000", "msmt17/test-0012"}


def test_time_is_ordered_within_a_camera(tmp_path: Path) -> None:
    root = write_release(tmp_path, "V1")
    seen = ["0302afternoon_9999", "0303morning_0008", "0303noon_0001", "0303noon_0002"]
    lines = [f"0000/0000_{n:03d}_01_{when}_0.jpg 0" for n, when in enumerate(seen)]
    (root / "list_train.txt").write_text("\n".join(lines))
    rows = read_dataset("msmt17:train", str(root)).to_pylist()
    times = [row["time"] for row in rows if row["split"] == "train"]
    assert times == sorted(set(times))
    assert len(times) == 4


def test_windows_lines_and_empty_ones(tmp_path: Path) -> None:
    root = write_release(tmp_path, "V1")
    manifest = read_dataset("msmt17", str(root))
    for name, text in LISTS.items():
        written = "\ufeff" + text.replace("\n", "\r\n") + "\r\n\r\n"
        (root / f"list_{name}.txt").write_bytes(written.encode())
    assert read_dataset("msmt17", str(root)).equals(manifest)


def test_repack(tmp_path: Path) -> None:
    root = touch(tmp_path / "MSMT17", REPACK)
    touch(root, {"query": ["Thumbs.db"]})
    manifest = read_dataset("msmt17", str(tmp_path))
    rows = [
        tuple(row[name] for name in ("key", "identity", "camera", "time", "split"))
        for row in manifest.to_pylist()
    ]
    assert rows == [
        ("bounding_box_test/0000_c14_0003.jpg", "msmt17/test-0000", "c14", None, "gallery"),
        ("bounding_box_test/0012_c6_0004.png", "msmt17/test-0012", "c6", None, "gallery"),
        ("query/0000_c03_0002.jpg", "msmt17/test-0000", "c3", None, "query"),
        ("bounding_box_train/0000_c01_0000.jpg", "msmt17/0000", "c1", None, "train"),
        ("bounding_box_train/0001_c15_0001.jpg", "msmt17/0001", "c15", None, "train"),
    ]
    assert {row["uri"] for row in manifest.to_pylist()} == {
        str(root / folder / name) for folder, names in REPACK.items() for name in names
    }


def test_repack_refuses(tmp_path: Path) -> None:
    root = touch(tmp_path, REPACK)
    text = refusal("msmt17:train", root)
    assert text.startswith(f"{root}: bounding_box_train of this repack holds train and validation")
    assert "dataset=msmt17:trainval" in text
    touch(root, {"query": ["0000_c3s1_000001_00.jpg"]})
    assert "not named PPPP_cCC_NNNN.jpg" in refusal("msmt17", root)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0000/0000_000_01_0303morning_0008_0.jpg", "line 3 is '0000/0000_000_01"),
        ("0000/0000_000_01_0303morning_0008_0.jpg zero", "and not PATH PERSON"),
        ("0000/0000_000_c1_0303morning_0008_0.jpg 0", "no camera number"),
        ("0000/0000_000.jpg 0", "third field between _ is no camera number"),
        ("../0000_000_01_0303morning_0008_0.jpg 0", "no path inside"),
        ("0000/../../0000_000_01_0303morning_0008_0.jpg 0", "no path inside"),
        ("/data/0000_000_01_0303morning_0008_0.jpg 0", "no path inside"),
        ("C:\\0000_000_01_0303morning_0008_0.jpg 0", "no path inside"),
        ("0000//0000_000_01_0303morning_0008_0.jpg 0", "no path inside"),
        ("0000/./0000_000_01_0303morning_0008_0.jpg 0", "no path inside"),
    ],
)
def test_refuses_lines(line: str, says: str, tmp_path: Path) -> None:
    root = write_release(tmp_path, "V2")
    path = root / "list_train.txt"
    path.write_text(LISTS["train"] + line + "\n")
    text = refusal("msmt17", root)
    assert text.startswith(f"{path}: ")
    assert says in text


def test_refuses_lists_and_folders(tmp_path: Path) -> None:
    root = write_release(tmp_path / "MSMT17_V1", "V1")
    path = root / "list_query.txt"
    path.write_text("\n\n")
    assert refusal("msmt17", root) == f"{path}: lists nothing; take it anew from the archive"
    path.write_bytes(b"\xff\xfe")
    assert "cannot be read: " in refusal("msmt17", root)
    path.write_text(LISTS["gallery"])
    assert "stands for more than one image" in refusal("msmt17", root)
    path.unlink()
    assert refusal("msmt17", root).startswith(f"{path}: no such file")
    (root / "test").rmdir()
    assert refusal("msmt17", root).startswith(f"{root / 'test'}: no such folder")

    write_release(tmp_path / "MSMT17_V2", "V2")
    assert "holds MSMT17_V1 and MSMT17_V2; give the path" in refusal("msmt17", tmp_path)
    (tmp_path / "bare").mkdir()
    assert "holds none of train, test or mask_train_v2" in refusal("msmt17", tmp_path / "bare")


def test_what_is_trained_on_is_stated() -> None:
    msmt17 = list_datasets()["msmt17"]
    assert {name: found.counts["train"].images for name, found in msmt17.variants.items()} == {
        "trainval": 32_621,
        "train": 30_248,
    }
    assert "32,621" in msmt17.protocol_note
    assert "30,248" in msmt17.protocol_note
