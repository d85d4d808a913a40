"""Wrong inputs: one line that names the culprit, with exit 2 and no traceback.

How a command leaves is the same for all of them and asked of the command itself, once for each kind
of mistake; what the line says is asked in this process, where nothing is imported anew.
"""

import io
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from pipelines.errors import UserError
from tests.commands import REID, answer


def reid(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*REID, *map(str, args)], capture_output=True, text=True, timeout=300)


def refused(done: subprocess.CompletedProcess[str], *says: object) -> None:
    """The command, in a process of its own, left as a user's mistake lets it."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("reid: ")
    for text in says:
        assert str(text) in last, last


def refuses(*args: object, says: Iterable[object]) -> None:
    """The command, run in this process, ends with a user's mistake that `run_command` would make
    exit 2 and one line of."""
    from pipelines.cli import reid as command

    with pytest.raises((UserError, click.ClickException)) as raised:
        CliRunner().invoke(
            command, [str(arg) for arg in args], catch_exceptions=False, standalone_mode=False
        )
    mistake = raised.value
    line = str(mistake) if isinstance(mistake, UserError) else mistake.format_message()
    assert "\n" not in line
    for text in says:
        assert str(text) in line, line


def jpeg(mode: str, size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 90).save(buffer, format="JPEG")
    return buffer.getvalue()


def sixteen_bits() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 32), 40_000, dtype=np.uint16)).save(buffer, format="PNG")
    return buffer.getvalue()


BAD_IMAGES = {
    "cut.jpg": (jpeg("RGB", (32, 64))[:-40], "cannot be decoded"),
    "text.jpg": (b"this is not a picture", "not an image"),
    "dot.jpg": (jpeg("RGB", (1, 1)), "1x1 pixels"),
    "ink.jpg": (jpeg("CMYK", (32, 64)), "CMYK"),
    "deep.png": (sixteen_bits(), "8 bits"),
}


def folder_args(root: Path) -> tuple[str, str, str]:
    return "demo", "dataset=identity_folders", f"data.root={root}"


def test_missing_and_empty_folder(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    refused(reid("ingest", *folder_args(missing), "--store", tmp_path / "s"), missing)
    empty = tmp_path / "empty"
    empty.mkdir()
    refuses("ingest", *folder_args(empty), "--store", tmp_path / "s", says=[empty])


def test_root_is_asked_for(tmp_path: Path) -> None:
    refuses("ingest", "demo", "dataset=market1501", "--store", tmp_path / "s", says=["data.root"])


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_bad_query_image(name: str, tmp_path: Path) -> None:
    from pipelines.images import ImageError, intake

    data, says = BAD_IMAGES[name]
    with pytest.raises(ImageError, match=says):
        intake(data)


@pytest.mark.ray
def test_bad_images_stop_ingest_above_the_limit_and_lie_in_quarantine_below_it(
    ray_session: None, tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    root, store = image_folder(), tmp_path / "s"
    answer("ingest", *folder_args(root), "--store", store)
    committed = {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}
    for name, (data, _) in BAD_IMAGES.items():
        (root / "p003" / name).write_bytes(data)

    done = reid("ingest", *folder_args(root), "--store", store)
    refused(done, root / "p003", "5 of 53 images", "data.quarantine_limit=0.01")
    assert {p: p.read_bytes() for p in committed} == committed

    values = answer("ingest", *folder_args(root), "data.quarantine_limit=0.2", "--store", store)
    assert (values["quarantined"], values["images"]) == (5, 48)
    table = pq.read_table(Path(values["blocks"]) / "quarantine.parquet").to_pylist()
    reasons = {Path(row["key"]).name: row["reason"] for row in table}
    assert set(reasons) == set(BAD_IMAGES)
    for name, (_, says) in BAD_IMAGES.items():
        assert says in reasons[name]


@pytest.mark.ray
def test_identities_with_one_image(
    ray_session: None, tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    root = image_folder(identities=20, cameras=1, images=1, name="crops/train")
    image_folder(identities=2, name="crops/query", prefix="t")
    image_folder(identities=2, name="crops/gallery", prefix="t")
    args = (*folder_args(root.parent), "evaluate.protocol=any_camera", "--store", tmp_path / "s")
    with pytest.raises(UserError, match=r"batch\.identities=8.*data\.min_images"):
        answer("train", *args)


def write_embeddings(path: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    vectors = np.random.default_rng(0).normal(size=(len(rows), 4)).astype(np.float32)
    columns = dict(
        zip(("key", "split", "identity", "camera"), zip(*rows, strict=True), strict=True)
    )
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), 4)
    pq.write_table(pa.table({**{k: list(v) for k, v in columns.items()}, "embedding": flat}), path)
    return path


def test_query_identities_absent_from_the_gallery(tmp_path: Path) -> None:
    rows = [("q", "query", "anna", "c1"), ("g", "gallery", "bert", "c2")]
    path = write_embeddings(tmp_path / "e.parquet", rows)
    refuses("evaluate", "--embeddings", path, says=["anna"])


def test_one_camera_only(tmp_path: Path) -> None:
    rows = [("q", "query", "anna", "c1"), ("g", "gallery", "anna", "c1")]
    path = write_embeddings(tmp_path / "e.parquet", rows)
    refuses("evaluate", "--embeddings", path, says=["any_camera"])
    found = answer("evaluate", "--embeddings", path, "--protocol", "any_camera")
    assert found["metrics"]["mAP"] == 100


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epoch=3", "did you mean 'epochs'"),
        ("train.epochs=three", "train.epochs='three'"),
        ("train.epochs=-1", "train.epochs=-1"),
    ],
)
def test_wrong_recipe_key_type_and_range(override: str, says: str, tmp_path: Path) -> None:
    refuses("train", "demo", override, "--store", tmp_path / "s", says=[says])


def test_store_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    refuses("ingest", "demo", "--store", blocked, says=[blocked, "--store"])
    refuses("ingest", "demo", "--store", "/proc/store", says=["/proc/store"])


def test_store_of_an_unknown_or_a_remote_kind() -> None:
    refuses("ingest", "demo", "--store", "foo://bucket", says=["foo://bucket", "foo"])
    for command in ("train", "run"):
        refuses(command, "demo", "--store", "memory://bucket", says=["memory://bucket", "folder"])


@pytest.mark.ray
def test_data_that_the_protocol_cannot_score_is_refused_before_training(
    ray_session: None, tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    root = image_folder(cameras=1, name="crops/train")
    image_folder(identities=2, cameras=1, name="crops/query", prefix="t")
    image_folder(identities=2, cameras=1, name="crops/gallery", prefix="t")
    with pytest.raises(UserError, match="any_camera"):
        answer("run", *folder_args(root.parent), "--store", tmp_path / "s")
    assert not (tmp_path / "s" / "runs").exists()


def test_unknown_command_and_option() -> None:
    refused(reid("trian", "demo"), "trian")
    refuses("train", "demo", "--stroe", "x", says=["--stroe"])


def test_options_of_an_embeddings_file_are_refused_beside_a_recipe() -> None:
    refuses("gallery", "build", "demo", "--shards", "3", says=["--shards", "--embeddings"])
