"""`reid import` as a command: what it reads, where it writes, and what it refuses in one line."""

import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from torch import Tensor

from pipelines.cli import reid
from pipelines.embedder import Embedder, read_card
from pipelines.errors import UserError
from reid_models import create_model
from reid_models.levit_import import official_state_dict
from tests.official_fusion import OfficialModel, random_state
from tests.slow_la import official_checkpoint

FUSION = (
    "model.cnn=resnet26",
    "model.transformer=vit_tiny_patch16_224",
    "model.fusion_dim=12",
    "model.fusion_heads=3",
    "input.image_size=[64,32]",
)
TRAINED_ON = ("--classes", 4, "--cameras", "c1,c2,c3")


@pytest.fixture(scope="module")
def official() -> dict[str, Tensor]:
    model = OfficialModel(
        resnet_blocks=(2, 2, 2, 2), dim=192, patches=5 * 2, side_rows=3, fusion_dim=12, classes=4
    )
    return random_state(model.shapes())


def imported(*args: object) -> dict[str, Any]:
    done = CliRunner().invoke(reid, ["import", *map(str, args), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return json.loads(done.stdout.splitlines()[-1])


def refusal(*args: object) -> str:
    """The one line that the command ends with."""
    with pytest.raises((UserError, click.ClickException)) as raised:
        CliRunner().invoke(
            reid, ["import", *map(str, args)], catch_exceptions=False, standalone_mode=False
        )
    mistake = raised.value
    line = str(mistake) if isinstance(mistake, UserError) else mistake.format_message()
    assert "\n" not in line
    return line


def test_the_same_tensors_in_other_files_are_the_same_model(
    official: Mapping[str, Tensor], tmp_path: Path
) -> None:
    files: dict[str, Callable[[Path], object]] = {
        "plain.pth": lambda file: torch.save(official, file),
        "parallel.pth": lambda file: torch.save(
            {f"module.{name}": value for name, value in official.items()}, file
        ),
        "wrapped.pth": lambda file: torch.save({"state_dict": official, "epoch": 3}, file),
        "same.safetensors": lambda file: safetensors.torch.save_file(dict(official), file),
    }
    checksums = set()
    for name, write in files.items():
        write(tmp_path / name)
        answer = imported(
            "fusion_reid", tmp_path / name, tmp_path / f"of-{name}", *FUSION, *TRAINED_ON
        )
        checksums.add(answer["weights_sha256"])
    assert len(checksums) == 1


UNFIT: dict[str, tuple[Callable[[dict[str, Tensor]], object], tuple[str, ...]]] = {
    "missing": (
        lambda state: {name: value for name, value in state.items() if name != "gap_r.p"},
        ("1 missing (gem.cnn.p)",),
    ),
    "extra": (
        lambda state: state | {f"stranger{number}": torch.zeros(2) for number in range(7)},
        ("7 unexpected (stranger0, stranger1, stranger2, stranger3, stranger4, and 2 more)",),
    ),
    "misshapen": (
        lambda state: state | {"gap_f.p": torch.zeros(4)},
        ("gem.transformer.p [4] instead of [1]",),
    ),
    "half of it": (
        lambda state: dict(list(state.items())[: len(state) // 2]),
        ("missing (", "more)"),
    ),
    "no tensors": (lambda state: [1, 2], ("something other than a dict of named tensors",)),
    "a whole module": (lambda state: torch.nn.Linear(1, 1), ("never run",)),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_does_not_fit_is_named_and_leaves_nothing(
    case: str, official: dict[str, Tensor], tmp_path: Path
) -> None:
    change, says = UNFIT[case]
    file, out = tmp_path / "official.pth", tmp_path / "deep" / "model"
    torch.save(change(official), file)
    line = refusal("fusion_reid", file, out, *FUSION, *TRAINED_ON)
    for text in (str(file), *says, "--classes"):
        assert text in line, line
    assert not out.parent.exists()


class Code:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (self.mark.touch, ())


@pytest.mark.parametrize("by_torch", [True, False])
def test_code_in_a_file_is_not_run(by_torch: bool, tmp_path: Path) -> None:
    mark, file = tmp_path / "was-run", tmp_path / "evil.pth"
    if by_torch:
        torch.save({"weight": Code(mark)}, file)
    else:
        file.write_bytes(pickle.dumps(Code(mark), protocol=2))  # torch warns of others
    line = refusal("fusion_reid", file, tmp_path / "model", *FUSION, *TRAINED_ON)
    assert "code in a weights file is never run" in line
    assert not mark.exists()
    pickle.loads(pickle.dumps(Code(mark)))
    assert mark.exists(), "a file that would do no harm shows nothing"


def _with_notes(folder: Path) -> Path:
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    return folder


def _file(path: Path) -> Path:
    path.write_text("mine")
    return path


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "folder with other files": (lambda to: _with_notes(to / "home"), "other files (notes.txt)"),
    "file": (lambda to: _file(to / "file"), "no folder to write in (Not a directory)"),
    "below a file": (lambda to: _file(to / "file") / "model", "(Not a directory)"),
    "no place for folders": (lambda to: "/proc/model", "no folder to write in"),
    "too long": (lambda to: to / ("x" * 300), "(File name too long)"),
    "not of this machine": (lambda to: "memory://models/one", "needs a local folder"),
}


@pytest.mark.parametrize("case", PLACES)
def test_a_place_that_cannot_take_the_model_is_left_alone(
    case: str, official: dict[str, Tensor], tmp_path: Path
) -> None:
    place, says = PLACES[case]
    file, out = tmp_path / "official.pth", place(tmp_path)
    torch.save(official, file)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    line = refusal("fusion_reid", file, out, *FUSION, *TRAINED_ON)
    assert says in line
    assert "--store" not in line
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_what_a_killed_import_leaves_is_no_hindrance(
    official: dict[str, Tensor], tmp_path: Path
) -> None:
    file, out = tmp_path / "official.pth", tmp_path / "model"
    torch.save(official, file)
    out.mkdir()
    for name in (".lock", "card.json", "model.safetensors.tmp-0123"):
        (out / name).write_text("{}")
    imported("fusion_reid", file, out, *FUSION, *TRAINED_ON)
    assert read_card(out).num_classes == 4


WORDS: dict[str, tuple[tuple[object, ...], str]] = {
    "allows all": ((*FUSION, *TRAINED_ON, "--allow", ""), "--allow '': every name begins so"),
    "no identities": ((*FUSION, "--classes", 0), "--classes"),
    "nothing said of identities": (FUSION, "--classes"),
    "one camera twice": ((*FUSION, "--classes", 4, "--cameras", "a,b,a"), "distinct names"),
    "too few cameras": (
        (*FUSION, "--classes", 4, "--cameras", "a,b"),
        "transformer.side_information.table_KC [3, 192] instead of [2, 192]",
    ),
    "unknown option": ((*FUSION, *TRAINED_ON, "model.htm_depht=2"), "did you mean 'htm_depth'"),
    "impossible option": ((*FUSION, *TRAINED_ON, "model.htm_depth=0"), "htm_depth must be"),
    "impossible size": ((*FUSION, *TRAINED_ON, "input.image_size=[8,8]"), "at least 32x32"),
    "views": (
        (*FUSION, *TRAINED_ON, "model.view_count=2"),
        "view_count=2: the pipeline feeds cameras only; a network takes views from Python",
    ),
}


@pytest.mark.parametrize("case", WORDS)
def test_wrong_words_are_one_line(case: str, official: dict[str, Tensor], tmp_path: Path) -> None:
    words, says = WORDS[case]
    file = tmp_path / "official.pth"
    torch.save(official, file)
    assert says in refusal("fusion_reid", file, tmp_path / "model", *words)
    assert not (tmp_path / "model").exists()


def test_la_transformer(tmp_path: Path) -> None:
    file, out = tmp_path / "la.pth", tmp_path / "model"
    state = official_checkpoint(4)
    torch.save(state, file)
    words = ("model.transformer=vit_tiny_patch16_224", "input.image_size=[64,48]")
    imported("la_transformer", file, out, *words, "--classes", 5)
    trunk = Embedder(read_card(out), out / "model.safetensors").model.transformer.trunk
    torch.testing.assert_close(trunk.norm.weight.double(), state["model.norm.weight"])


def test_levit_of_other_identities(tmp_path: Path) -> None:
    file, out = tmp_path / "levit.pth", tmp_path / "model"
    torch.manual_seed(3)
    model = create_model("levit_s", 4, image_size=(64, 32), window=2)
    torch.save(official_state_dict(model), file)
    command = ("levit/market_s", file, out, "model.window=2", "input.image_size=[64,32]")
    line = refusal(*command, "--classes", 9)
    assert "class_list." in line
    answer = imported(*command, "--classes", 9, "--allow", "class_list.")
    assert answer["left_untrained"]
    assert all(name.startswith("class_list.") for name in answer["left_untrained"])
