"""The drawn dataset: same config, same bytes; Market's layout; people who can be told apart."""

import dataclasses
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

from pipelines.datasets import read_dataset
from pipelines.datasets.drawn import (
    DrawnConfig,
    draw_dataset,
    draw_image,
    encode_image,
    plan,
)
from pipelines.datasets.drawn.config import DISTRACTOR, JUNK
from pipelines.datasets.drawn.person import FAMILY_SIZE, person
from pipelines.datasets.drawn.streams import Stream
from pipelines.errors import UserError

CONFIG = DrawnConfig(
    train_identities=4,
    test_identities=3,
    cameras=3,
    images_per_camera=3,
    distractors=5,
    junk=4,
    seed=11,
)


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_the_plan_is_the_dataset() -> None:
    images = plan(CONFIG)
    paths = [path for path, *_ in images]
    assert len(set(paths)) == len(paths) == 4 * 9 + 3 * 9 + 5 + 4
    folders = [path.split("/")[0] for path in paths]
    assert folders.count("bounding_box_train") == 36
    assert folders.count("query") == 9
    assert folders.count("bounding_box_test") == 18 + 5 + 4
    for path, identity, camera, _ in images:
        name = re.fullmatch(r"\w+/(-1|\d{4})_c([1-6])s1_\d{6}_01\.jpg", path)
        assert name, path
        assert (int(name[1]), int(name[2])) == (identity, camera)
        assert path.startswith("bounding_box_train") == (1 <= identity <= 4)


def test_drawing_is_read_as_market(tmp_path: Path) -> None:
    assert draw_dataset(CONFIG, tmp_path) == len(plan(CONFIG))
    manifest = read_dataset("drawn", str(tmp_path))
    roles = dict(zip(*pc.value_counts(manifest["role"]).flatten(), strict=True))
    assert {key.as_py(): count.as_py() for key, count in roles.items()} == {
        "normal": 63,
        "distractor": 5,
        "junk": 4,
    }
    assert sorted(manifest["key"].to_pylist()) == sorted(path for path, *_ in plan(CONFIG))
    with Image.open(manifest["uri"][0].as_py()) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 128))


def test_files_are_the_images_drawn_alone_and_again(tmp_path: Path) -> None:
    draw_dataset(CONFIG, tmp_path)
    once = files(tmp_path)
    for path, *address in reversed(plan(CONFIG)):
        assert encode_image(CONFIG, *address) == once[path]
    (tmp_path / "query" / "0005_c1s1_000025_01.jpg").write_bytes(b"cut off")
    (tmp_path / "query" / ".0005_c2s1_000025_01.jpg.part").write_bytes(b"cut off")
    draw_dataset(CONFIG, tmp_path)
    assert files(tmp_path) == once


def test_another_process_draws_the_same_picture() -> None:
    code = (
        "import hashlib; from pipelines.datasets.drawn import *;"
        f"print(hashlib.sha256(draw_image({CONFIG!r}, 6, 2, 1).tobytes()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "5"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    here = hashlib.sha256(draw_image(CONFIG, 6, 2, 1).tobytes()).hexdigest()
    assert done.stdout.strip() == here


def test_every_address_and_seed_has_its_picture() -> None:
    pictures = {draw_image(CONFIG, *address).tobytes() for _, *address in plan(CONFIG)}
    assert len(pictures) == len(plan(CONFIG))
    other = dataclasses.replace(CONFIG, seed=12)
    assert draw_image(other, 1, 1, 0).tobytes() not in pictures


@pytest.mark.parametrize("size", [(128, 64), (256, 128), (96, 96), (16, 16)])
@pytest.mark.parametrize("identity", [1, DISTRACTOR, JUNK])
def test_pictures_of_any_size(size: tuple[int, int], identity: int) -> None:
    picture = draw_image(dataclasses.replace(CONFIG, image_size=size), identity, 1, 0)
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8
    assert picture.std() > 10


def test_a_person_is_somebody_else_in_the_middle_and_the_same_camera_behind() -> None:
    """Pictures of two people differ most where the body is; a camera's cast is on all of its."""
    config = dataclasses.replace(CONFIG, test_identities=40, seed=3)
    means = np.zeros((config.cameras, 3))
    middle, edge = [], []
    for camera in range(1, config.cameras + 1):
        stack = np.stack([draw_image(config, n, camera, 0) for n in range(1, 41)]).astype(float)
        means[camera - 1] = stack.mean((0, 1, 2))
        spread = stack.std(0).mean((0, 2))
        middle.append(spread[26:38].mean())
        edge.append(np.r_[spread[:6], spread[-6:]].mean())
    assert np.mean(middle) > np.mean(edge)
    balance = means / means.sum(1, keepdims=True)
    assert np.ptp(balance, axis=0).max() > 0.02


def test_a_family_shares_colours_and_not_the_person() -> None:
    family = [person(0, "person", FAMILY_SIZE + n) for n in range(FAMILY_SIZE)]
    for name in ("top", "second", "lower", "lower_second", "hair", "skin", "bag_colour"):
        assert len({getattr(one, name) for one in family}) == 1, name
    assert len(set(family)) == FAMILY_SIZE
    cuts = {(one.pattern, one.lower_cut, one.hem, one.bag, one.hair_style) for one in family}
    assert len(cuts) == FAMILY_SIZE
    tops = {person(0, "person", FAMILY_SIZE * n).top for n in range(40)}
    assert len(tops) > 4


def test_streams() -> None:
    one, same, other = Stream(1, "x", 2), Stream(1, "x", 2), Stream(1, "x", 3)
    numbers = [one.uniform() for _ in range(200)]
    assert numbers == [same.uniform() for _ in range(200)]
    assert len(set(numbers) | {other.uniform() for _ in range(200)}) == 400
    assert 0.4 < np.mean(numbers) < 0.6
    assert {other.below(3) for _ in range(100)} == {0, 1, 2}
    bell = other.noise(50_000)
    assert abs(bell.mean()) < 0.02
    assert abs(bell.std() - 1) < 0.02
    single = [other.normal(2.0) for _ in range(2_000)]
    assert abs(np.mean(single)) < 0.2
    assert abs(np.std(single) - 2) < 0.2
    assert not np.array_equal(other.noise(8), other.noise(8))
    assert other.noise(3, 2).shape == (3, 2)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train_identities", 0),
        ("test_identities", 0),
        ("cameras", 1),
        ("images_per_camera", 1),
        ("images_per_camera", 50_000),
        ("distractors", -1),
        ("distractors", 200_000),
        ("image_size", (8, 64)),
        ("seed", -1),
        ("quality", 0),
        ("quality", 101),
    ],
)
def test_values_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(UserError, match=field):
        dataclasses.replace(CONFIG, **{field: value})


def test_folders_that_are_in_use_or_closed(tmp_path: Path) -> None:
    draw_dataset(CONFIG, tmp_path / "a")
    smaller = dataclasses.replace(CONFIG, test_identities=2)
    with pytest.raises(UserError, match="is not of this dataset"):
        draw_dataset(smaller, tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        draw_dataset(CONFIG, tmp_path / "file")


def test_colours_alone_do_not_find_people(tmp_path: Path) -> None:
    """The figure that the package's docstring gives for plain histograms, on other seeds."""
    from benchmarks.drawn_baseline import score_histograms

    config = DrawnConfig(train_identities=1, test_identities=30, distractors=30, seed=5)
    scores = score_histograms(config)
    assert scores["whole"][0] < 10
    assert scores["stripes"][0] < 25
