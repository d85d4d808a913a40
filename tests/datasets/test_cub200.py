"""CUB-200-2011: two lists joined by the image's number, classes split in halves."""

from pathlib import Path

import pytest

from pipelines.datasets import MANIFEST_SCHEMA, read_dataset
from tests.datasets.layouts import counts, refusal, touch

CLASSES = {
    1: ("001.Black_footed_Albatross", 3),
    100: ("100.Brown_Pelican", 2),
    101: ("101.White_Pelican", 3),
    200: ("200.Common_Yellowthroat", 2),
}


def cub(root: Path) -> Path:
    """Images with numbers that go against the order of their names, labels in another order."""
    paths = [
        (number, f"{folder}/Bird_{n:04}_{900 - n}.jpg")
        for number, (folder, size) in CLASSES.items()
        for n in range(size)
    ][::-1]
    touch(root / "images", {folder: [] for folder, _ in CLASSES.values()})
    for _, path in paths:
        (root / "images" / path).touch()
    images = [f"{n} {path}" for n, (_, path) in enumerate(paths, 1)]
    labels = [f"{n} {number}" for n, (number, _) in enumerate(paths, 1)]
    (root / "images.txt").write_text("\n".join(images) + "\n")
    (root / "image_class_labels.txt").write_text("\n".join(labels[::-1]) + "\n")
    (root / "train_test_split.txt").write_text("1 0\n")
    return root


def reference(root: Path) -> list[dict[str, object]]:
    rows = []
    for folder in (root / "images").iterdir():
        number = int(folder.name[:3])
        for place, path in enumerate(sorted(folder.iterdir())):
            test = "query" if place == 0 else "gallery"
            rows.append(
                {
                    "key": f"images/{folder.name}/{path.name}",
                    "uri": str(path),
                    "identity": f"cub200/{number:03}",
                    "camera": None,
                    "view": None,
                    "time": None,
                    "domain": "cub200",
                    "split": "train" if number <= 100 else test,
                    "role": "normal",
                }
            )
    return sorted(rows, key=lambda row: (row["split"], row["identity"], row["key"]))


def test_rows(tmp_path: Path) -> None:
    root = cub(tmp_path / "CUB_200_2011")
    expected = reference(root)
    touch(root, {"images/001.Black_footed_Albatross": ["not_listed.jpg"]})
    manifest = read_dataset("cub200", str(tmp_path))
    assert manifest.schema == MANIFEST_SCHEMA
    assert manifest.to_pylist() == expected
    assert read_dataset("cub200", str(root)).equals(manifest)
    assert counts(manifest) == {"train": 5, "query": 2, "gallery": 3}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        (
            "image_class_labels.txt",
            "1 200\n",
            "1 199\n",
            "of class 199 and lies at 200.Common_Y",
        ),
        (
            "image_class_labels.txt",
            "1 200\n",
            "11 200\n",
            "has no class for image 1 of images",
        ),
        ("image_class_labels.txt", "1 200\n", "2 200\n", "labels an image twice"),
        ("image_class_labels.txt", "1 200\n", "1\n", "and not ID CLASS"),
        ("images.txt", "/Bird_0000_900", "/../Bird_0000_900", "which is no path inside"),
        ("images.txt", "1 200.", "1 /etc/200.", "and not ID NNN.Name/IMAGE.jpg"),
    ],
)
def test_refuses_lists(name: str, old: str, new: str, says: str, tmp_path: Path) -> None:
    root = cub(tmp_path)
    edit(root / name, old, new)
    message = refusal("cub200", root)
    assert message.startswith(str(root / name))
    assert says in message


def test_refuses(tmp_path: Path) -> None:
    assert "holds none of images" in refusal("cub200", tmp_path)
    root = cub(tmp_path / "a")
    (root / "images.txt").unlink()
    assert refusal("cub200", root).startswith(f"{root / 'images.txt'}: no such file")
    root = cub(tmp_path / "b")
    listed = (root / "images.txt").read_text().splitlines()[0].split()[1]
    with (root / "images.txt").open("a") as file:
        file.write(f"11 {listed}\n")
    with (root / "image_class_labels.txt").open("a") as file:
        file.write("11 200\n")
    assert "stands for more than one image" in refusal("cub200", root)
