"""`reid explain`: what it draws."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pipelines.cli import reid
from pipelines.contact_sheet import GAP
from pipelines.errors import UserError
from pipelines.explain import Explained, Heat, explain
from pipelines.explain_picture import draw_explanation
from pipelines.model_source import open_model
from tests.model_folders import ROWS, write_model, write_pictures


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pictures(tmp_path_factory.mktemp("pictures"))


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


def test_long_names_stay_within_the_sheet(tmp_path: Path) -> None:
    heat = Heat(title="one", values_hw=np.eye(2, dtype=np.float32))
    grey = np.full((64, 32, 3), 128, np.uint8)
    seen = Explained(pixels_HW3=grey, other_HW3=None, similarity=None, heats=(heat,))
    sheets = {}
    for case, text in {"short": "anna.jpg", "long": f"levit_s: {'m' * 90} {'w' * 90}"}.items():
        draw_explanation(tmp_path / f"{case}.png", seen, heading=(text,))
        with Image.open(tmp_path / f"{case}.png") as sheet:
            sheets[case] = np.asarray(sheet.convert("L")).astype(int)
    short, long = sheets["short"], sheets["long"]
    assert long.shape[1] == short.shape[1]
    added = long.shape[0] - short.shape[0]
    assert added > 0
    assert (long[:, -GAP:] == long[0, 0]).all()
    assert np.array_equal(long[-300:], short[-300:]), "the panels move down whole"
    inked = (long[: added + GAP, GAP:-GAP] < 100).any(axis=0)
    assert inked[: long.shape[1] // 2].any()
    assert inked[long.shape[1] // 2 :].any()


def test_an_even_map_is_drawn_too(tmp_path: Path) -> None:
    heat = Heat(title="even", values_hw=np.full((3, 2), 0.25, np.float32))
    grey = np.full((48, 32, 3), 128, np.uint8)
    seen = Explained(pixels_HW3=grey, other_HW3=grey, similarity=1.0, heats=(heat,))
    draw_explanation(tmp_path / "even.png", seen, heading=("one", "two"))
    with Image.open(tmp_path / "even.png") as sheet:
        assert sheet.width > 600


HEADINGS: dict[str, tuple[tuple[object, ...], bool, tuple[str, ...]]] = {
    "alone": ((), True, ("fusion_reid: anna.jpg, camera unknown", "makes up the embedding")),
    "camera": (("--camera", "c2"), True, ("camera c2", "makes up the embedding")),
    "other camera": (("--camera", "c9"), True, ("c9, which training did not know", "makes up")),
    "no Grad-CAM": ((), False, ("la_transformer: anna.jpg",)),
}


@pytest.mark.parametrize("case", HEADINGS)
def test_the_heading_tells_what_is_seen(
    case: str,
    model_folder: Path,
    pictures: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, is_fusion, expected = HEADINGS[case]
    drawn: list[str] = []
    monkeypatch.setattr(
        "pipelines.explain_picture.draw_explanation",
        lambda path, explained, *, heading: drawn.extend(heading),
    )
    model = model_folder if is_fusion else write_model(tmp_path / "la", ROWS)
    run(model, pictures[0], *words, "--output", tmp_path / "out.png")
    assert len(drawn) == len(expected)
    for line, part in zip(drawn, expected, strict=True):
        assert part in line


def test_a_model_with_nothing_to_show_says_so(
    pictures: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = open_model(str(write_model(tmp_path)), (), "nowhere")
    monkeypatch.setattr(type(embedder.model), "explanations", lambda self: ())
    with pytest.raises(UserError, match="nothing that can be shown"):
        explain(embedder, pictures[0])


def test_nobody_else_pays_for_the_library() -> None:
    probe = (
        "import sys, reid_models, pipelines.explain_picture, pipelines.cli_explain\n"
        "print([m for m in ('captum', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
