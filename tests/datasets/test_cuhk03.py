"""CUHK03: the prepacked folders, and the release with its HDF5 images and MATLAB lists."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pipelines.datasets import read_dataset
from tests.datasets.layouts import counts, identities, refusal, touch

PREPACKED = {
    "bounding_box_train": ["0001_c1_1.png", "0001_c2_06.png"],
    "query": ["0003_c1_22.png", "0003_c2_29.png"],
    "bounding_box_test": ["0003_c1_21.png", "1467_c2_1_more.png"],
}
PAIRS = 5
TAKEN = {
    (1, 1): (1, 2, 6),
    (1, 2): (1, 7, 10),
    (2, 1): (5, 6, 8),
    (5, 3): (3, 9),
}
"""Indices of the images there are, by pair and person; all other cells are empty."""
FILES = [
    f"{pair}_{person:03d}_{1 if index <= 5 else 2}_{index:02d}.png"
    for (pair, person), taken in TAKEN.items()
    for index in taken
]
LABELS = [label for label, taken in enumerate(TAKEN.values(), start=1) for _ in taken]
INDICES = {"train_idx": [1, 2, 3, 4, 5, 6], "query_idx": [7, 8, 10], "gallery_idx": [9, 11]}
SPLIT_OF = {"train_idx": "train", "query_idx": "query", "gallery_idx": "gallery"}


def draw(pair: int, person: int, index: int) -> np.ndarray:
    """An image [height, width, channel] whose every value is its own; no two have one size."""
    height, width = 9 + index, 20 + pair
    start = 100 * pair + 10 * person + index
    return (start + np.arange(height * width * 3)).reshape(height, width, 3).astype(np.uint8)


def write_release(root: Path, variant: str = "detected", bad: np.ndarray | None = None) -> Path:
    """`cuhk-03.mat` as MATLAB 7.3 writes it: a header before the HDF5 file, cells as references,
    dimensions in the other order, an empty array as its two sizes; `bad` is 5_003_2_09."""
    path = root / "cuhk03_release" / "cuhk-03.mat"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        places = file.create_group("#refs#")

        def store(name: str, value: Any, **kind: Any) -> h5py.Reference:
            return places.create_dataset(name, data=value, **kind).ref

        pairs = []
        for pair in range(1, PAIRS + 1):
            people = max([person for at, person in TAKEN if at == pair], default=1)
            cells = np.empty((10, people), h5py.ref_dtype)
            for person in range(1, people + 1):
                for index in range(1, 11):
                    name = f"{pair}_{person}_{index}"
                    if index in TAKEN.get((pair, person), ()):
                        image = draw(pair, person, index)
                        if bad is not None and name == "5_3_9":
                            image = bad
                        packed = store(name, image.T, compression="gzip")
                        cells[index - 1, person - 1] = packed
                    else:
                        cells[index - 1, person - 1] = store(name, np.zeros(2, np.uint64))
                        places[name].attrs["MATLAB_empty"] = np.uint8(1)
            pairs.append(store(f"pair{pair}", cells, dtype=h5py.ref_dtype))
        file.create_dataset(variant, data=np.array([pairs], h5py.ref_dtype), dtype=h5py.ref_dtype)
    with path.open("r+b") as header:
        header.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))
    write_lists(root, variant)
    return root


def write_lists(root: Path, variant: str = "detected", **changed: Any) -> Path:
    """The lists as MATLAB writes them: columns of numbers, a cell of file names."""
    names = np.empty((len(FILES), 1), object)
    names[:, 0] = FILES
    columns = {name: np.array([values]).T for name, values in INDICES.items()}
    lists = {"filelist": names, "labels": np.array([LABELS], np.uint16).T} | columns | changed
    path = root / f"cuhk03_new_protocol_config_{variant}.mat"
    savemat(path, {name: value for name, value in lists.items() if value is not None})
    return path


def release_reference(root: Path, variant: str) -> list[dict[str, object]]:
    """One index after the other."""
    folder = f"images_{variant}"
    rows = []
    for name, indices in INDICES.items():
        for index in indices:
            file = FILES[index - 1]
            rows.append(
                {
                    "key": f"{folder}/{file}",
                    "uri": str(root / folder / file),
                    "identity": f"cuhk03/{LABELS[index - 1]:04d}",
                    "camera": f"c{file.split('_')[2]}",
                    "view": None,
                    "time": None,
                    "domain": "cuhk03",
                    "split": SPLIT_OF[name],
                    "role": "normal",
                }
            )
    return sorted(rows, key=lambda row: (row["split"], row["identity"], row["key"]))


@pytest.mark.parametrize("variant", ["detected", "labeled"])
@pytest.mark.parametrize("name", ["cuhk03-np", "cuhk03"])
def test_prepacked(variant: str, name: str, tmp_path: Path) -> None:
    folders = {f"{name}/{variant}/{folder}": names for folder, names in PREPACKED.items()}
    touch(tmp_path, folders)
    touch(tmp_path, {f"{name}/{variant}/query": ["Thumbs.db"]})
    manifest = read_dataset(f"cuhk03:{variant}", str(tmp_path / name))
    rows = [
        tuple(row[column] for column in ("key", "identity", "camera", "split"))
        for row in manifest.to_pylist()
    ]
    assert rows == [
        (f"{variant}/bounding_box_test/0003_c1_21.png", "cuhk03/0003", "c1", "gallery"),
        (f"{variant}/bounding_box_test/1467_c2_1_more.png", "cuhk03/1467", "c2", "gallery"),
        (f"{variant}/query/0003_c1_22.png", "cuhk03/0003", "c1", "query"),
        (f"{variant}/query/0003_c2_29.png", "cuhk03/0003", "c2", "query"),
        (f"{variant}/bounding_box_train/0001_c1_1.png", "cuhk03/0001", "c1", "train"),
        (f"{variant}/bounding_box_train/0001_c2_06.png", "cuhk03/0001", "c2", "train"),
    ]
    assert read_dataset(f"cuhk03:{variant}", str(tmp_path)).equals(manifest)
    if variant == "detected":
        assert read_dataset("cuhk03", str(tmp_path)).equals(manifest)


def test_prepacked_refuses(tmp_path: Path) -> None:
    root = touch(tmp_path, {f"detected/{folder}": names for folder, names in PREPACKED.items()})
    assert "holds none of labeled/bounding_box_train" in refusal("cuhk03:labeled", root)
    touch(root, {"detected/query": ["1_001_1_01.png"]})
    text = refusal("cuhk03", root)
    assert text.startswith(f"{root / 'detected/query/1_001_1_01.png'}: not named PPPP_cC_NN.png")
    shutil.rmtree(root / "detected/query")
    assert refusal("cuhk03", root).startswith(f"{root / 'detected/query'}: no such folder")


@pytest.mark.parametrize("variant", ["detected", "labeled"])
def test_release(variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_release(tmp_path / "cuhk03", variant)
    manifest = read_dataset(f"cuhk03:{variant}", str(tmp_path))
    assert manifest.to_pylist() == release_reference(root, variant)
    assert counts(manifest) == {"train": 6, "query": 3, "gallery": 2}
    assert identities(manifest, "gallery") == {"cuhk03/0003", "cuhk03/0004"}
    said = capsys.readouterr()
    assert said.out == ""
    assert f"writing the images of {root / 'cuhk03_release/cuhk-03.mat'}" in said.err
    assert str(root / f"images_{variant}") in said.err
    assert all(Path(row["uri"]).is_file() for row in manifest.to_pylist())


def test_pixels_come_out_upright(tmp_path: Path) -> None:
    root = write_release(tmp_path)
    read_dataset("cuhk03", str(root))
    written = {path.name for path in (root / "images_detected").iterdir()}
    assert written == set(FILES)
    for (pair, person), taken in TAKEN.items():
        for index in taken:
            name = next(
                name
                for name in FILES
                if name.startswith(f"{pair}_{person:03d}_") and name.endswith(f"_{index:02d}.png")
            )
            with Image.open(root / "images_detected" / name) as image:
                assert image.mode == "RGB"
                assert np.array_equal(np.asarray(image), draw(pair, person, index))


def test_images_are_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_release(tmp_path)
    first = read_dataset("cuhk03", str(root))
    capsys.readouterr()
    times = {path: path.stat().st_mtime_ns for path in (root / "images_detected").iterdir()}
    (root / "cuhk03_release/cuhk-03.mat").unlink()
    assert read_dataset("cuhk03", str(root)).equals(first)
    assert capsys.readouterr().err == ""
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_what_other_tools_wrote_is_used(tmp_path: Path) -> None:
    touch(tmp_path, {"images_labeled": FILES})
    write_lists(tmp_path, "labeled")
    manifest = read_dataset("cuhk03:labeled", str(tmp_path))
    assert manifest.to_pylist() == release_reference(tmp_path, "labeled")
    assert all((tmp_path / "images_labeled" / name).stat().st_size == 0 for name in FILES)


def test_lists_beside_the_archive(tmp_path: Path) -> None:
    root = write_release(tmp_path)
    expected = read_dataset("cuhk03", str(root))
    name = "cuhk03_new_protocol_config_detected.mat"
    (root / name).rename(root / "cuhk03_release" / name)
    assert read_dataset("cuhk03", str(root)).equals(expected)


def left_behind(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir()} - {"cuhk03_release"}


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (np.zeros((9, 20, 3), np.float64), "5_003_2_09.png is float64 [3, 20, 9]"),
        (np.zeros((9, 20, 4), np.uint8), "5_003_2_09.png is uint8 [4, 20, 9]"),
    ],
)
def test_a_broken_run_leaves_nothing(bad: np.ndarray, says: str, tmp_path: Path) -> None:
    """All images but the last are good, so ten of eleven were written when it breaks."""
    root = write_release(tmp_path, bad=bad)
    text = refusal("cuhk03", root)
    assert text.startswith(f"{root / 'cuhk03_release/cuhk-03.mat'}: {says}")
    assert "take cuhk-03.mat anew" in text
    assert left_behind(root) == set()


def test_a_damaged_image(tmp_path: Path) -> None:
    root = write_release(tmp_path)
    archive = root / "cuhk03_release/cuhk-03.mat"
    with h5py.File(archive) as file:
        _, packed = file["#refs#/5_3_9"].id.read_direct_chunk((0, 0, 0))
    whole = archive.read_bytes()
    assert whole.count(packed) == 1
    archive.write_bytes(whole.replace(packed, bytes(len(packed))))
    assert f"{archive}: 5_003_2_09.png cannot be read" in refusal("cuhk03", root)
    assert left_behind(root) == set()


def test_runs_at_the_same_time_wait_for_one_another(tmp_path: Path) -> None:
    root = write_release(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read_dataset("cuhk03", str(root)), range(4)))
    assert all(manifest.equals(found[0]) for manifest in found)
    assert {path.name for path in (root / "images_detected").iterdir()} == set(FILES)


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    root = write_release(tmp_path)
    touch(root, {".images_detected.part": ["9_999_1_01.png"]})
    read_dataset("cuhk03", str(root))
    assert left_behind(root) == {"images_detected"}
    assert {path.name for path in (root / "images_detected").iterdir()} == set(FILES)


def test_archive_refused(tmp_path: Path) -> None:
    root = write_release(tmp_path)
    archive = root / "cuhk03_release/cuhk-03.mat"
    whole = archive.read_bytes()
    write_lists(root, "labeled")
    text = refusal("cuhk03:labeled", root)
    assert text.startswith(f"{archive}: is not laid out as released")
    assert "'labeled' doesn't exist" in text.replace("\\'", "'")
    for cut in (whole[: len(whole) // 2], b"no archive"):
        archive.write_bytes(cut)
        text = refusal("cuhk03", root)
        assert text.startswith(f"{archive}: is no whole HDF5 file")
    with h5py.File(archive, "w") as file:
        file["detected"] = np.zeros((1, 5))
    assert "is not laid out as released" in refusal("cuhk03", root)
    archive.unlink()
    text = refusal("cuhk03", root)
    assert text.startswith(f"{archive}: no such file")
    assert str(root / "images_detected") in text
    assert left_behind(root) == set()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"query_idx": None}, "has no variable query_idx"),
        ({"query_idx": np.array([[0, 7]])}, "query_idx goes from 0 to 7, and there are 11 files"),
        ({"gallery_idx": np.array([[9, 12]])}, "gallery_idx goes from 9 to 12"),
        ({"labels": np.array([[1, 2]])}, "lists 11 files and 2 labels"),
        ({"train_idx": np.array([[1, 7]])}, "the key images_detected/2_001_1_05.png stands for"),
        ({"train_idx": np.array([[1, 9]]), "gallery_idx": np.array([[11]])}, "are in train and"),
        ({"filelist": np.array([["../1_001_1_01.png"] * 11], object)}, "'../1_001_1_01.png'"),
        ({"filelist": np.array([["0001_c1_1.png"] * 11], object)}, "not named as in 1_001_1_01"),
    ],
)
def test_lists_refused(changed: dict[str, Any], says: str, tmp_path: Path) -> None:
    root = write_release(tmp_path)
    path = write_lists(root, **changed)
    text = refusal("cuhk03", root)
    assert text.startswith(str(root if "stands for" in says or "in train" in says else path))
    assert says in text


def test_lists_that_are_no_lists(tmp_path: Path) -> None:
    root = write_release(tmp_path)
    path = root / "cuhk03_new_protocol_config_detected.mat"
    whole = path.read_bytes()
    for damaged in (b"", b"text and no numbers" * 20, whole[: len(whole) // 2], whole[:140]):
        path.write_bytes(damaged)
        assert refusal("cuhk03", root).startswith(f"{path}: ")
    path.unlink()
    assert refusal("cuhk03", root).startswith(f"{path}: no such file")
    assert left_behind(root) == set()


@contextmanager
def without_rights() -> Iterator[None]:
    """As somebody who may write nowhere; the administrator may write anywhere."""
    administrator = os.geteuid() == 0
    if administrator:
        os.seteuid(65534)
    try:
        yield
    finally:
        if administrator:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights of users are POSIX")
def test_a_root_that_cannot_be_written_to() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = write_release(Path(folder) / "cuhk03")
        read_dataset("cuhk03", str(root))
        shutil.rmtree(root / "images_detected")
        (root / ".images_detected.lock").unlink(missing_ok=True)
        Path(folder).chmod(0o755)
        root.chmod(0o555)
        with without_rights():
            text = refusal("cuhk03", root)
        root.chmod(0o755)
        assert text.startswith(f"{root / 'images_detected'}: cannot be written: Permission denied")
        assert "read a copy of the dataset that can be" in text
        assert left_behind(root) == set()
