"""PKU-Reid as LA-TF++ laid it out."""

from collections import defaultdict
from pathlib import Path

from pipelines.datasets import read_dataset
from tests.datasets.layouts import counts, identities, refusal, touch

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
