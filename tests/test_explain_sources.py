"""`reid explain`: which model it opens, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipelines.blocks import SCHEMA_VERSION, Blocks
from pipelines.cli import reid
from pipelines.embedder import CARD, WEIGHTS, Embedder
from pipelines.errors import UserError
from pipelines.model_source import open_model
from pipelines.recipe_file import load_recipe
from pipelines.registry import Tracker, promote, register_model
from pipelines.store import Store
from pipelines.training_fingerprint import training_fingerprint
from tests.model_folders import SMALL, write_model, write_pictures


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def opened(source: object, store: Path, *overrides: str) -> Embedder:
    return open_model(str(source), overrides, str(store))


def weights_of(embedder: Embedder) -> torch.Tensor:
    return next(embedder.model.parameters()).flatten()


def test_a_recipe_is_its_newest_finished_run(tmp_path: Path) -> None:
    recipe, store = load_recipe("demo", ["seed=7"]), Store.open(str(tmp_path))
    with pytest.raises(UserError, match="demo is not trained in .*reid train demo seed=7"):
        opened("demo", tmp_path, "seed=7")
    runs = []
    for data in ("old", "new", "unfinished"):
        blocks = store.room("blocks", "drawn", f"{data:<12}".replace(" ", "0")).make()
        blocks.commit({"schema_version": SCHEMA_VERSION, "fingerprint": data, "shards": []})
        print_ = training_fingerprint(recipe, Blocks.open(blocks.uri))
        runs.append(store.room("runs", recipe.title, print_).make())
        write_model(runs[-1].local(), seed=len(runs))
    for run_folder in runs[:2]:
        run_folder.commit({"weights_sha256": "0"})
    found = opened("demo", tmp_path, "seed=7")
    assert torch.equal(weights_of(found), weights_of(opened(runs[1].uri, tmp_path)))
    chosen = opened("demo", tmp_path, "seed=7", "model.embed_features=[cnn_global]")
    assert torch.equal(weights_of(chosen), weights_of(found))
    assert [view.title for view in chosen.model.explanations()] == ["Grad-CAM, CNN"]
    assert len(found.model.explanations()) > 1
    with pytest.raises(UserError, match="not trained"):
        opened("demo", tmp_path, "seed=8")


def test_a_registered_version_is_found_by_alias_and_number(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    tracker = Tracker.open(str(tmp_path))
    register_model(
        tracker,
        tracker.start_run("real"),
        name="small",
        weights=model_folder / WEIGHTS,
        recipe_yaml="dataset: drawn\n",
        model_card=json.loads((model_folder / CARD).read_text(encoding="utf-8")),
        metrics={"mAP": 70.0},
        tags={"data_fingerprint": "drawn-1", "protocol": "market", "gallery": "gallery-1"},
    )
    promote(tracker, "small")
    expected = weights_of(opened(model_folder, tmp_path))
    for source in ("models:/small@champion", "models:/small/1"):
        assert torch.equal(weights_of(opened(source, tmp_path)), expected)
    for source, reason in {
        "models:/small@nobody": "nobody",
        "models:/small/9": "9",
        "models:/tall@champion": "tall",
        "models:/small": "models:/NAME@ALIAS",
    }.items():
        with pytest.raises(UserError, match=reason):
            opened(source, tmp_path)


def test_only_a_recipe_takes_options(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="seed=3"):
        opened(model_folder, tmp_path, "seed=3")


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def dot(path: Path) -> Path:
    Image.new("RGB", (1, 1)).save(path)
    return path


def with_card(folder: Path, text: str) -> Path:
    write_model(folder)
    (folder / CARD).write_text(text, encoding="utf-8")
    return folder


def changed(**changes: object) -> str:
    return json.dumps(SMALL.to_dict() | changes)


CARDS = {
    "no mapping": ("[1]", "no readable model card"),
    "no JSON": ("model", "no readable model card"),
    "unknown key": (changed(colour="red"), "colour"),
    "unknown model": (changed(model="resnet"), "this version builds no such model"),
    "unknown option": (changed(options={"cnnx": "resnet10t"}), "cnnx"),
    "wrong size": (changed(image_size="abc"), "this version builds no such model"),
    "other options": (changed(options=SMALL.options | {"htm_depth": 2}), "another model"),
}


@pytest.mark.parametrize("case", CARDS)
def test_a_card_that_builds_no_model_is_named(case: str, tmp_path: Path) -> None:
    text, says = CARDS[case]
    folder = with_card(tmp_path / "model", text)
    with pytest.raises(UserError, match=says) as raised:
        opened(folder, tmp_path)
    assert str(folder) in str(raised.value)


def test_looking_for_a_version_makes_no_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"no model is registered in .*stroe"):
        opened("models:/small@champion", tmp_path / "stroe")
    assert not (tmp_path / "stroe").exists()


def test_an_image_is_not_overwritten(
    model_folder: Path, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    image, link, other = (tmp_path / name for name in ("anna.png", "link.png", "other.png"))
    for source, path in zip(pictures, (image, other), strict=True):
        path.write_bytes(source.read_bytes())
    link.symlink_to(image)
    before = image.read_bytes()
    for words in (
        (image, "--output", image),
        (image, "--output", link),
        (other, "--against", image, "--output", image),
    ):
        result = CliRunner().invoke(reid, ["explain", str(model_folder), *map(str, words)])
        assert isinstance(result.exception, UserError), result.output
        assert "is the image itself" in str(result.exception)
    assert image.read_bytes() == before


BAD = {
    "no image": lambda model, image, to: (model, to / "none.jpg", "none.jpg"),
    "folder for an image": lambda model, image, to: (model, empty(to / "crops"), "crops"),
    "no model": lambda model, image, to: (empty(to / "model"), image, "no readable model card"),
    "no recipe": lambda model, image, to: ("fusion_red", image, "fusion_reid"),
    "no such path": lambda model, image, to: (to / "gone", image, "nor is"),
    "weights": lambda model, image, to: (model / WEIGHTS, image, "nor is"),
    "one pixel": lambda model, image, to: (model, dot(to / "dot.png"), "1x1 pixels"),
    "too long": lambda model, image, to: (model, image, "--output", f"{'x' * 300}.png", "too long"),
    "below a file": lambda model, image, to: (model, image, "--output", image / "b.png", "folder"),
    "no other": lambda model, image, to: (model, image, "--against", to / "none.png", "none.png"),
    "no folder": lambda model, image, to: (model, image, "--output", to / "a/b.png", "no folder"),
    "no png": lambda model, image, to: (model, image, "--output", to / "b.jpg", "PNG"),
    "a folder": lambda model, image, to: (model, image, "--output", empty(to / "c.png"), "folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_inputs_are_named(
    case: str,
    model_folder: Path,
    pictures: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make: Callable[..., tuple[object, ...]] = BAD[case]
    *arguments, reason = make(model_folder, pictures[0], tmp_path)
    result = CliRunner().invoke(reid, ["explain", *map(str, arguments)])
    assert isinstance(result.exception, UserError), result.output
    assert str(reason) in str(result.exception)
    assert {path.name for path in tmp_path.glob("*.png")} <= {"c.png", "dot.png"}


def test_text_for_an_image_is_one_line_and_status_2(model_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pipelines", "explain", str(model_folder), str(text)),
            *("--output", str(tmp_path / "out.png")),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == f"reid: {text}: not an image file"
