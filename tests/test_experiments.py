"""Experiments in a recipe file: how they resolve, what is refused, how they are listed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import reid
from pipelines.errors import UserError
from pipelines.experiments import PUBLISHED
from pipelines.recipe_file import list_recipes, load_recipe, open_recipe

FILES = {name: open_recipe(name)[0] for name in list_recipes()}
EXPERIMENTS = {
    f"{name}/{experiment}" for name, file in FILES.items() for experiment in file.experiments
}


def test_experiments_win_over_the_dataset_and_the_command_line_over_both() -> None:
    assert load_recipe("levit", ["dataset=dukemtmc"]).optim.freeze == ()
    assert load_recipe("levit/duke_l_384").optim.freeze == ("stem",)
    assert load_recipe("levit", ["dataset=veri776"]).optim.freeze == ("stem",)
    assert load_recipe("levit/veri_l").optim.freeze == ("stem", "stage1")
    assert load_recipe("levit/veri_l", ["optim.freeze=[]"]).optim.freeze == ()
    elsewhere = load_recipe("levit/duke_l_384", ["dataset=cars196"])
    assert (elsewhere.dataset, elsewhere.optim.lr) == ("cars196", 0.04)
    assert elsewhere.input.image_size == (384, 128)
    assert elsewhere.recipe == "levit-duke_l_384"


def test_a_variant_takes_the_changes_of_its_dataset_and_then_its_own(tmp_path: Path) -> None:
    assert load_recipe("levit", ["dataset=msmt17:train"]).optim.freeze == ("stem",)
    assert load_recipe("levit", ["dataset=msmt17:train"]).title == "levit-msmt17-train"
    path = tmp_path / "mine.yaml"
    path.write_text(
        "recipe: mine\nmodel: {name: levit_s}\ndataset_overrides:\n"
        "  vehicleid:1600: {optim: {lr: 0.5}}\n"
        "  vehicleid: {optim: {lr: 0.4, weight_decay: 0.1}}\n"
    )
    for dataset, lr in (("vehicleid", 0.4), ("vehicleid:800", 0.4), ("vehicleid:1600", 0.5)):
        optim = load_recipe(str(path), [f"dataset={dataset}"]).optim
        assert (optim.lr, optim.weight_decay) == (lr, 0.1)


MINE = """
recipe: mine
model: {name: levit_s}
departures: [Nothing is as it was.]
dataset_overrides:
  pku_reid: {batch: {images: 8}, optim: {lr: 0.2, weight_decay: 0.2}}
experiments:
  plain:
  small: {dataset: pku_reid, optim: {lr: 0.3}}
"""


def test_experiments_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE)
    small = load_recipe(f"{path}/small", ["seed=3"])
    assert (small.recipe, small.dataset, small.seed) == ("mine-small", "pku_reid", 3)
    assert (small.optim.lr, small.optim.weight_decay, small.batch.images) == (0.3, 0.2, 8)
    assert load_recipe(f"{path}/plain").optim == load_recipe(str(path)).optim
    with pytest.raises(UserError, match=r"mine\.yaml: unknown experiment 'smal'.*mean 'small'"):
        load_recipe(f"{path}/smal")
    with pytest.raises(UserError, match=r"other\.yaml: no such recipe file"):
        load_recipe(str(tmp_path / "other.yaml" / "small"))


def test_a_file_that_is_there_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("levit/market_s").recipe == "levit-market_s"
    (tmp_path / "levit").mkdir()
    (tmp_path / "levit" / "market_s").write_text(MINE)
    assert load_recipe("levit/market_s").recipe == "mine"
    (tmp_path / "levit.yaml").write_text(MINE)
    assert load_recipe("levit.yaml").recipe == "mine"
    with pytest.raises(UserError, match=r"levit/none/market_s: no such recipe file"):
        load_recipe("levit/none/market_s")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("levit/market_x", "recipe levit: unknown experiment 'market_x' (did you mean 'market_"),
        ("levit/", "recipe levit: unknown experiment ''"),
        ("demo/fast", "recipe demo: has no experiments, so none called 'fast'"),
        ("levitt/market_s", "unknown recipe 'levitt' (did you mean 'levit'?)"),
    ],
)
def test_unknown_experiments_are_named(name: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        load_recipe(name)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("experiment", "says"),
    [
        (
            "{optim: {lrr: 1}}",
            "mine.yaml: experiment a: unknown key 'optim.lrr' (did you mean 'lr'",
        ),
        ("{optm: {lr: 1}}", "mine.yaml: experiment a: unknown key 'optm' (did you mean 'optim'?)"),
        ("{model: {windw: 7}}", "mine.yaml: experiment a: unknown key 'model.windw'"),
        ("{recipe: other}", "mine.yaml: experiment a: its recipe is named a"),
        ("{published: {figures: {R1: 90}}}", "experiment a: published.source is missing"),
        ("{published: {source: x, figures: {mAP: 9}}}", "experiment a: published: ap goes with"),
        ("{published: {source: x, ap: step}}", "experiment a: published: ap goes with an mAP"),
        ("{published: {sorce: x, source: y}}", "unknown key 'published.sorce' (did you mean 'sour"),
        ("{published: here}", "experiment a: published is a mapping"),
        ("[1]", "mine.yaml: experiments is a mapping of names of experiments to keys"),
    ],
)
def test_wrong_experiments_are_named_in_one_line(
    experiment: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"recipe: m\nmodel: {{name: levit_s}}\nexperiments:\n  a: {experiment}\n")
    with pytest.raises(UserError) as refused:
        load_recipe(f"{path}/a")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("experiments: {'a/b': {}}", "experiment a/b: name='a/b': string should match"),
        ("experiments: [a]", "experiments is a mapping"),
        ("departures: none", "departures is a list of sentences"),
    ],
)
def test_wrong_parts_of_a_file_are_named(extra: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"recipe: m\nmodel: {{name: levit_s}}\n{extra}\n")
    with pytest.raises(UserError, match=f"mine.yaml: {says}"):
        load_recipe(str(path))


def recipes(*args: str) -> str:
    result = CliRunner().invoke(reid, ["recipes", *args])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_list_shows_every_experiment_within_a_hundred_columns() -> None:
    lines = recipes().splitlines()
    assert max(map(len, lines)) <= 100
    by_name = {line.split()[0]: line for line in lines if line}
    assert EXPERIMENTS | FILES.keys() <= by_name.keys()
    row = by_name["levit/cars_l"].split()
    assert row[1:] == ["levit_l", "cars196", "256x256", "R1", "94.2", "NMI", "82.6", "[4]"]
    row = by_name["fusion_reid/market_l3"].split()
    assert row[:4] == ["fusion_reid/market_l3", "fusion_reid", "market1501", "256x128"]
    assert row[4:9] == ["mAP", "91.8", "R1", "96.4", "step"]


def test_the_json_list_holds_everything() -> None:
    answer = json.loads(recipes("--json").splitlines()[-1])
    assert answer["recipes"] == list_recipes()
    rows = {row["name"]: row for row in answer["experiments"]}
    assert rows.keys() == EXPERIMENTS | FILES.keys()
    row = rows["levit/vehicleid_s"]
    assert (row["system"], row["dataset"]) == ("levit_s", "vehicleid")
    assert row["image_size"] == [256, 256]
    assert row[PUBLISHED]["figures"]["mAP"] == 88.2481
    assert row[PUBLISHED]["ap"] == "trapezoid"
    assert rows["fusion_reid/msmt17_l2"][PUBLISHED]["features"]["cnn_fused"] == [65.9, 85.3]
    assert rows["demo"][PUBLISHED] is None
    assert answer["departures"]["levit"] == list(FILES["levit"].departures)


@pytest.mark.parametrize(
    "name", ["la_transformer", "levit", "levit/university_s", "lvit_net/without_duke", "demo"]
)
def test_a_dumped_recipe_is_a_recipe_file_with_its_story_below(name: str, tmp_path: Path) -> None:
    text = recipes(name)
    path = tmp_path / "dumped.yaml"
    path.write_text(text)
    assert load_recipe(str(path)) == load_recipe(name)
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert max(map(len, comments), default=0) <= 100
    assert any("Experiments:" in line for line in comments) == (name in ("la_transformer", "levit"))
    assert any("Published:" in line for line in comments) == ("/" in name)
    assert any("Departures" in line for line in comments) == (name != "demo")
    assert json.loads(recipes(name, "--json").splitlines()[-1]) == load_recipe(name).to_dict()
