"""University-1652: four directions, gallery-only buildings, empty google folders."""

from pathlib import Path

import pyarrow.compute as pc
import pytest

from pipelines.datasets import MANIFEST_SCHEMA, list_datasets, read_dataset
from tests.datasets.layouts import counts, identities, refusal, touch

DRONE = [f"image-{n:02}.jpeg" for n in (1, 2, 3)]
FILES = {
    "train/satellite/0839": ["0839.jpg"],
    "train/satellite/0840": ["0840.jpg"],
    "train/drone/0839": DRONE,
    "train/drone/0840": DRONE,
    "train/street/0839": ["1.jpg", "2.jpg"],
    "train/google/0839": ["a 1.jpg", "Thumbs.db"],
    "train/google/0840": [],
    "test/query_satellite/0000": ["0000.jpg"],
    "test/query_satellite/0001": ["0001.jpg"],
    "test/query_drone/0000": DRONE,
    "test/query_drone/0001": DRONE,
    "test/query_street/0000": ["1.jpg"],
    "test/gallery_satellite/0000": ["0000.jpg"],
    "test/gallery_satellite/0001": ["0001.jpg"],
    "test/gallery_satellite/1651": ["1651.jpg"],
    "test/gallery_drone/0000": DRONE,
    "test/gallery_drone/0001": [*DRONE, "image-04.jpeg"],
    "test/gallery_drone/1651": DRONE,
    "test/gallery_street/0000": ["1.jpg"],
    "test/gallery_street/1651": ["1.jpg", "2.png"],
    "test/4K_drone/0000": ["big.jpg"],
}
DIRECTIONS = (
    "satellite_to_drone",
    "drone_to_satellite",
    "street_to_satellite",
    "satellite_to_street",
)


def reference(root: Path, direction: str) -> list[dict[str, object]]:
    query_view, _, gallery_view = direction.split("_")
    folders = {f"train/{view}": "train" for view in ("satellite", "drone", "street", "google")}
    folders |= {f"test/query_{query_view}": "query", f"test/gallery_{gallery_view}": "gallery"}
    asked = {path.name for path in (root / f"test/query_{query_view}").iterdir()}
    rows = []
    for folder, split in folders.items():
        for path in (root / folder).glob("*/*.*"):
            if path.name == "Thumbs.db":
                continue
            building = path.parent.name
            nobody = split == "gallery" and building not in asked
            rows.append(
                {
                    "key": f"{folder}/{building}/{path.name}",
                    "uri": str(path),
                    "identity": f"university1652/{building}",
                    "camera": None,
                    "view": folder.split("/")[1].split("_")[-1],
                    "time": None,
                    "domain": "university1652",
                    "split": split,
                    "role": "distractor" if nobody else "normal",
                }
            )
    return sorted(rows, key=lambda row: (row["split"], row["identity"], row["key"]))


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rows(direction: str, tmp_path: Path) -> None:
    root = touch(tmp_path / "University-Release", FILES)
    manifest = read_dataset(f"university1652:{direction}", str(tmp_path))
    assert manifest.schema == MANIFEST_SCHEMA
    assert manifest.to_pylist() == reference(root, direction)
    assert read_dataset(f"university1652:{direction}", str(root)).equals(manifest)


def test_the_default_direction(tmp_path: Path) -> None:
    root = touch(tmp_path, FILES)
    manifest = read_dataset("university1652", str(root))
    assert manifest.equals(read_dataset("university1652:satellite_to_drone", str(root)))
    assert counts(manifest) == {"train": 11, "query": 2, "gallery": 10}
    assert identities(manifest, "gallery") == {"university1652/0000", "university1652/0001"}
    gallery_only = manifest.filter(pc.equal(manifest["role"], "distractor"))
    assert set(gallery_only["identity"].to_pylist()) == {"university1652/1651"}


def test_a_direction_needs_its_own_folders_alone(tmp_path: Path) -> None:
    used = {name: files for name, files in FILES.items() if "street" not in name or "train" in name}
    root = touch(tmp_path, used)
    assert len(read_dataset("university1652", str(root)))
    message = refusal("university1652:street_to_satellite", root)
    assert message.startswith(f"{root / 'test/query_street'}: no such folder")


def test_official_figures() -> None:
    variants = list_datasets()["university1652"].variants
    assert tuple(variants) == DIRECTIONS
    sizes = {name: variant.counts["gallery"].images for name, variant in variants.items()}
    assert list(sizes.values()) == [51_355, 951, 951, 2_921]
    queries = [variant.counts["query"].images for variant in variants.values()]
    assert queries == [701, 37_855, 2_579, 701]


def test_refuses(tmp_path: Path) -> None:
    assert "holds none of train, test" in refusal("university1652", tmp_path)
    root = touch(tmp_path / "a", FILES)
    touch(root, {"train/drone": ["image-01.jpeg"]})
    message = refusal("university1652", root)
    assert message.startswith(str(root / "train/drone/image-01.jpeg"))
    assert "outside any building's folder" in message
    root = touch(tmp_path / "b", FILES | {"test/gallery_drone/old": ["1.jpg"]})
    assert refusal("university1652", root).startswith(str(root / "test/gallery_drone/old"))
    root = touch(tmp_path / "c", {name: f for name, f in FILES.items() if "google" not in name})
    assert refusal("university1652", root).startswith(f"{root / 'train/google'}: no such folder")
    root = touch(tmp_path / "d", FILES | {"train/drone/0001": DRONE})
    assert "first university1652/0001" in refusal("university1652", root)
    root = touch(tmp_path / "e", {name: [] for name in FILES})
    assert "holds no image" in refusal("university1652", root)
    assert "no variant 'drone_to_street'" in refusal("university1652:drone_to_street", root)
