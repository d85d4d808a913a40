"""Market-1501 and sets packed like it: what is read, what is refused and in which words."""

import re
from pathlib import Path

import pyarrow.compute as pc
import pytest

from pipelines.datasets import MANIFEST_SCHEMA, read_dataset
from tests.datasets.layouts import MARKET, counts, identities, refusal, touch

SPLIT_OF = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}


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


EXTRA = ["00000000.jpg", "0000_c1s1_000151_01.jpg", "0042_c2s1_000007_00.jpg", "-1_odd.png"]


@pytest.mark.parametrize(
    ("place", "prefix"),
    [
        ("Market-1501-v15.09.15/images", "images"),
        ("Market-1501-v15.09.15/distractors_500k", "distractors_500k"),
        ("images", "images"),
        ("distractors_500k", "distractors_500k"),
    ],
)
def test_half_a_million_distractors(place: str, prefix: str, tmp_path: Path) -> None:
    root = touch(tmp_path / "Market-1501-v15.09.15", MARKET)
    plain = read_dataset("market1501", str(root))
    touch(tmp_path, {place: [*EXTRA, "Thumbs.db"]})
    assert read_dataset("market1501", str(root)).equals(plain)
    manifest = read_dataset("market1501:500k", str(root))
    assert read_dataset("market1501:500k", str(tmp_path)).equals(manifest)

    extra = pc.starts_with(manifest["key"], f"{prefix}/")
    assert manifest.filter(pc.invert(extra)).equals(plain)
    said = {EXTRA[1]: ("c1", 1_000_151), EXTRA[2]: ("c2", 1_000_007)}
    expected = [
        {
            "key": f"{prefix}/{name}",
            "uri": str(tmp_path / place / name),
            "identity": "market1501/0000",
            "camera": said.get(name, (None, None))[0],
            "view": None,
            "time": said.get(name, (None, None))[1],
            "domain": "market1501",
            "split": "gallery",
            "role": "distractor",
        }
        for name in sorted(EXTRA)
    ]
    assert manifest.filter(extra).to_pylist() == expected


def test_distractors_are_asked_for(tmp_path: Path) -> None:
    root = touch(tmp_path / "market1501", MARKET)
    text = refusal("market1501:500k", root)
    assert text.startswith(f"{root}: no folder images or distractors_500k")
    touch(root, {"images": ["Thumbs.db"]})
    assert refusal("market1501:500k", root).startswith(f"{root / 'images'}: holds no image")


def test_two_copies_are_not_mixed_up(tmp_path: Path) -> None:
    touch(tmp_path / "market1501", MARKET)
    (tmp_path / "Market-1501-v15.09.15").symlink_to("market1501")
    assert len(read_dataset("market1501", str(tmp_path))) == 8
    (tmp_path / "Market-1501-v15.09.15").unlink()
    touch(tmp_path / "Market-1501-v15.09.15", MARKET)
    text = refusal("market1501", tmp_path)
    assert "holds Market-1501-v15.09.15 and market1501; give the path of the one" in text


def test_market_counts(data_root: Path) -> None:
    manifest = read_dataset("market1501", str(data_root))
    assert counts(manifest) == {"train": 12_936, "query": 3_368, "gallery": 19_732}
    not_junk = manifest.filter(pc.not_equal(manifest["role"], "junk"))
    assert counts(not_junk)["gallery"] == 15_913
    sizes = [len(identities(manifest, split)) for split in ("train", "query", "gallery")]
    assert sizes == [751, 750, 750]
    assert set(manifest["camera"].to_pylist()) == {f"c{n}" for n in range(1, 7)}
    assert manifest.to_pylist() == market_reference(data_root / "Market-1501-v15.09.15")
