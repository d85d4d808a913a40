"""Cars196: both releases, split by class and not by the test flag or the folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from pipelines.datasets import MANIFEST_SCHEMA, list_datasets, read_dataset
from tests.datasets.layouts import counts, refusal, touch

CLASSES = [99, 98, 1, 196, 99, 196, 99, 1]
BOXES = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def write_annotations(
    path: Path, name_field: str, names: list[Any], classes: list[Any] | None, **more: list[int]
) -> None:
    """A 1 x N struct array, the fields in the order of the devkit."""
    columns: dict[str, list[Any]] = {name_field: names}
    columns |= {name: [n + 1 for n in range(len(names))] for name in BOXES}
    columns |= {} if classes is None else {"class": classes}
    columns |= more
    rows = np.empty((1, len(names)), [(name, object) for name in columns])
    for name, values in columns.items():
        for n, value in enumerate(values):
            rows[0, n][name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": rows, "class_names": np.array(["a"])}, do_compression=True)


def one_folder(root: Path, classes: list[Any] = CLASSES) -> Path:
    names = [f"{n:06}.jpg" for n in range(len(classes), 0, -1)]
    touch(root, {"car_ims": names})
    paths = [f"car_ims/{name}" for name in names]
    test = [n % 2 for n in range(len(classes))]
    write_annotations(root / "cars_annos.mat", "relative_im_path", paths, classes, test=test)
    return root


def split_release(root: Path, *, devkit: bool = False) -> Path:
    parts = {"train": CLASSES[:5], "test": CLASSES[5:]}
    for part, classes in parts.items():
        names = [f"{n:05}.jpg" for n in range(1, len(classes) + 1)]
        touch(root, {f"cars_{part}": names})
        if part == "train":
            write_annotations(root / "devkit/cars_train_annos.mat", "fname", names, classes)
            continue
        write_annotations(root / "devkit/cars_test_annos.mat", "fname", names, None)
        folder = root / "devkit" if devkit else root
        write_annotations(folder / "cars_test_annos_withlabels.mat", "fname", names, classes)
    return root


def reference(root: Path, class_of: dict[str, int]) -> list[dict[str, object]]:
    rows, seen = [], set()
    for key in sorted(class_of):
        number = class_of[key]
        test = "gallery" if number in seen else "query"
        seen.add(number)
        rows.append(
            {
                "key": key,
                "uri": str(root / key),
                "identity": f"cars196/{number:03}",
                "camera": None,
                "view": None,
                "time": None,
                "domain": "cars196",
                "split": "train" if number <= 98 else test,
                "role": "normal",
            }
        )
    return sorted(rows, key=lambda row: (row["split"], row["identity"], row["key"]))


def test_one_folder(tmp_path: Path) -> None:
    root = one_folder(tmp_path / "CARS")
    touch(root, {"car_ims": ["not_listed.jpg"]})
    manifest = read_dataset("cars196", str(tmp_path))
    class_of = {f"car_ims/{8 - n:06}.jpg": number for n, number in enumerate(CLASSES)}
    assert manifest.schema == MANIFEST_SCHEMA
    assert manifest.to_pylist() == reference(root, class_of)
    assert read_dataset("cars196", str(root)).equals(manifest)
    assert counts(manifest) == {"train": 3, "query": 2, "gallery": 3}


@pytest.mark.parametrize("devkit", [False, True])
def test_the_split_release_is_read_together(devkit: bool, tmp_path: Path) -> None:
    root = split_release(tmp_path / "stanford_cars", devkit=devkit)
    manifest = read_dataset("cars196", str(tmp_path))
    keys = [f"cars_train/{n:05}.jpg" for n in range(1, 6)]
    keys += [f"cars_test/{n:05}.jpg" for n in range(1, 4)]
    assert manifest.to_pylist() == reference(root, dict(zip(keys, CLASSES, strict=True)))


def test_both_releases_have_the_same_classes(tmp_path: Path) -> None:
    one = read_dataset("cars196", str(one_folder(tmp_path / "a")))
    two = read_dataset("cars196", str(split_release(tmp_path / "b")))
    assert one["identity"].equals(two["identity"])
    assert one["split"].equals(two["split"])


def test_official_figures() -> None:
    found = list_datasets()["cars196"].variants[""].counts
    assert sum(count.images or 0 for count in found.values()) == 16_185
    assert (found["query"].images or 0) + (found["gallery"].images or 0) == 8_131


def test_refuses_a_test_without_labels(tmp_path: Path) -> None:
    root = split_release(tmp_path)
    labels = root / "cars_test_annos_withlabels.mat"
    labels.unlink()
    message = refusal("cars196", root)
    assert message.startswith(str(labels))
    assert "cars_test_annos.mat has no classes; get it" in message
    labels.write_bytes((root / "devkit/cars_test_annos.mat").read_bytes())
    message = refusal("cars196", root)
    assert message.startswith(f"{labels}: its annotations have no field class")


@pytest.mark.parametrize("number", [0, 197, 1.5, "sedan", [1, 2], []])
def test_refuses_classes(number: object, tmp_path: Path) -> None:
    root = one_folder(tmp_path, [*CLASSES, number])
    message = refusal("cars196", root)
    assert message.startswith(f"{root / 'cars_annos.mat'}: gives 'car_ims/000001.jpg' the class")
    assert "a number from 1 to 196" in message


@pytest.mark.parametrize("name", ["../other.jpg", "/etc/passwd", "car_ims/../../x.jpg", 7, ""])
def test_refuses_paths(name: object, tmp_path: Path) -> None:
    root = one_folder(tmp_path)
    write_annotations(root / "cars_annos.mat", "relative_im_path", [name], [1])
    message = refusal("cars196", root)
    assert message.startswith(str(root / "cars_annos.mat"))
    assert "no path inside" in message or "must be a file name" in message


def test_refuses_files(tmp_path: Path) -> None:
    assert "holds none of car_ims or cars_train, cars_test" in refusal("cars196", tmp_path)
    root = one_folder(tmp_path / "a")
    whole = (root / "cars_annos.mat").read_bytes()
    for damaged in (b"", b"no matrix", whole[:200], whole[: len(whole) // 2]):
        (root / "cars_annos.mat").write_bytes(damaged)
        message = refusal("cars196", root)
        assert message.startswith(f"{root / 'cars_annos.mat'}: ")
    savemat(root / "cars_annos.mat", {"annotations": np.arange(3)})
    assert "have no field relative_im_path" in refusal("cars196", root)
    savemat(root / "cars_annos.mat", {"other": np.arange(3)})
    assert "has no variable annotations" in refusal("cars196", root)
    (root / "cars_annos.mat").unlink()
    assert refusal("cars196", root).startswith(f"{root / 'cars_annos.mat'}: no such file")
    two = split_release(tmp_path / "b")
    (two / "devkit/cars_train_annos.mat").unlink()
    assert "cars_train_annos.mat: no such file" in refusal("cars196", two)
    alone = touch(tmp_path / "c", {"cars_train": ["00001.jpg"]})
    assert refusal("cars196", alone).startswith(f"{alone / 'cars_test'}: no such folder")
