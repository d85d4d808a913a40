"""`reid explain`: which model it opens, what it draws, and what it refuses."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from pipelines.blocks import SCHEMA_VERSION, Blocks
from pipelines.cli import reid
from pipelines.contact_sheet import GAP
from pipelines.datasets.drawn import DrawnConfig, encode_image
from pipelines.embedder import CARD, WEIGHTS, Embedder, ModelCard
from pipelines.engine import save_weights
from pipelines.errors import UserError
from pipelines.explain import Explained, Heat, explain
from pipelines.explain_picture import draw_explanation
from pipelines.model_source import open_model
from pipelines.recipe_file import load_recipe
from pipelines.registry import Tracker, promote, register_model
from pipelines.store import Store
from pipelines.train import training_fingerprint

SMALL = ModelCard(
    model="fusion_reid",
    options={
        "cnn": "resnet10t",
        "transformer": "vit_tiny_patch16_224",
        "patch_stride": 16,
        "fusion_dim": 24,
        "fusion_heads": 2,
        "htm_depth": 1,
    },
    num_classes=5,
    cameras=("c1", "c2"),
    image_size=(64, 32),
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
    interpolation="bilinear",
    flip=True,
    embedding_dim=0,
)


DRAWN = DrawnConfig(train_identities=1, test_identities=1, seed=0)


def write_model(folder: Path, card: ModelCard = SMALL, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = card.create_model()
    folder.mkdir(parents=True, exist_ok=True)
    whole = replace(card, embedding_dim=model.embedding_dim)
    (folder / CARD).write_text(json.dumps(whole.to_dict()), encoding="utf-8")
    save_weights(folder / WEIGHTS, model)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = folder / "anna.jpg", folder / "berta.jpg"
    for identity, path in enumerate(paths, start=1):
        path.write_bytes(encode_image(DRAWN, identity, 1, 0))
    return paths


def run(*args: object) -> dict[str, object]:
    result = CliRunner().invoke(
        reid, ["explain", *map(str, args), "--json"], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_one_picture_with_every_view(
    model_folder: Path, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    alone = run(model_folder, pictures[0], "--output", tmp_path / "alone.png")
    assert [view["title"] for view in alone["views"]] == [
        "Attention rollout, transformer",
        "Grad-CAM, CNN",
        "MFU 1, CNN reads transformer",
        "MFU 1, transformer reads CNN",
    ]
    assert np.shape(alone["views"][0]["values"]) == (4, 2)
    assert alone["similarity"] is None
    both = run(
        model_folder, pictures[0], "--against", pictures[1], "--output", tmp_path / "both.png"
    )
    assert -1 <= both["similarity"] <= 1
    with Image.open(tmp_path / "alone.png") as one, Image.open(tmp_path / "both.png") as two:
        assert one.format == two.format == "PNG"
        assert two.width > one.width, "the other image has a panel of its own"
    assert list(tmp_path.glob(".tmp-*")) == []


def test_the_other_image_changes_grad_cam_alone(
    model_folder: Path, pictures: tuple[Path, Path]
) -> None:
    embedder = open_model(str(model_folder), (), "nowhere")
    alone = explain(embedder, pictures[0])
    both = explain(embedder, pictures[0], against=pictures[1])
    same = explain(embedder, pictures[0], against=pictures[0])
    assert same.similarity == pytest.approx(1, abs=1e-5)
    assert both.similarity is not None
    assert both.similarity < same.similarity
    for one, two in zip(alone.heats, both.heats, strict=True):
        assert np.array_equal(one.values_hw, two.values_hw) == ("Grad-CAM" not in one.title)


def test_the_camera_is_one_of_the_training(model_folder: Path, pictures: tuple[Path, Path]) -> None:
    embedder = open_model(str(model_folder), (), "nowhere")
    seen = {
        name: explain(embedder, pictures[0], camera=name).heats[0].values_hw
        for name in (None, "c1", "c2", "elsewhere")
    }
    assert not np.array_equal(seen["c1"], seen["c2"])
    assert np.array_equal(seen[None], seen["elsewhere"])


def test_what_is_drawn_is_where_the_value_is(tmp_path: Path) -> None:
    """One hot cell of 4 x 2 in a black image is the only bright place, at its row and column."""
    values_hw = np.zeros((4, 2), np.float32)
    values_hw[2, 1] = 5.0
    heat = Heat(title="one cell", values_hw=values_hw)
    black = np.zeros((64, 32, 3), np.uint8)
    seen = Explained(pixels_HW3=black, other_HW3=None, similarity=None, heats=(heat,))
    draw_explanation(tmp_path / "cell.png", seen, heading=())
    with Image.open(tmp_path / "cell.png") as sheet:
        pixels_HW3 = np.asarray(sheet.convert("RGB")).astype(int)
    rows, columns = np.nonzero((pixels_HW3 == 0).all(axis=2))  # of the input
    left = columns.min() + (pixels_HW3.shape[1] - GAP) // 2
    right = left + columns.max() + 1 - columns.min()
    panel = pixels_HW3[rows.min() : rows.max() + 1, left:right].sum(axis=2)
    row, column = np.unravel_index(panel.argmax(), panel.shape)
    assert 2 / 4 < row / panel.shape[0] < 3 / 4
    assert 1 / 2 < column / panel.shape[1] < 1
    assert panel[: panel.shape[0] // 4].max() < panel.max() / 2


def test_an_even_map_is_drawn_too(tmp_path: Path) -> None:
    heat = Heat(title="even", values_hw=np.full((3, 2), 0.25, np.float32))
    grey = np.full((48, 32, 3), 128, np.uint8)
    seen = Explained(pixels_HW3=grey, other_HW3=grey, similarity=1.0, heats=(heat,))
    draw_explanation(tmp_path / "even.png", seen, heading=("one", "two"))
    with Image.open(tmp_path / "even.png") as sheet:
        assert sheet.width > 600


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


BAD = {
    "no image": lambda model, image, to: (model, to / "none.jpg", "none.jpg"),
    "folder for an image": lambda model, image, to: (model, empty(to / "crops"), "crops"),
    "no model": lambda model, image, to: (empty(to / "model"), image, "no readable model card"),
    "no recipe": lambda model, image, to: ("fusion_red", image, "fusion_reid"),
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
    assert list(tmp_path.glob("*.png")) in ([], [tmp_path / "c.png"])


def test_a_model_with_nothing_to_show_says_so(
    pictures: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = open_model(str(write_model(tmp_path)), (), "nowhere")
    monkeypatch.setattr(type(embedder.model), "explanations", lambda self: ())
    with pytest.raises(UserError, match="nothing that can be shown"):
        explain(embedder, pictures[0])


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


def test_nobody_else_pays_for_the_library() -> None:
    probe = (
        "import sys, reid_models, pipelines.explain_picture, pipelines.cli_explain\n"
        "print([m for m in ('captum', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
