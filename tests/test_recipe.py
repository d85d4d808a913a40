"""Recipes: what is refused and how, and that a written recipe reads back the same."""

from pathlib import Path

import pytest
import yaml

from pipelines.errors import UserError
from pipelines.recipe_file import check_recipe, dump_recipe, list_recipes, load_recipe
from pipelines.safe_yaml import load


@pytest.mark.parametrize("name", list_recipes())
def test_shipped_recipe_is_valid_and_reads_back(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.recipe == name
    assert check_recipe(yaml.safe_load(dump_recipe(recipe)), "copy") == recipe


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.epochz=3", "unknown key 'train.epochz' (did you mean 'epochs'?)"),
        ("trian.epochs=3", "unknown key 'trian' (did you mean 'train'?)"),
        ("model.htm_dept=2", "unknown key 'model.htm_dept' (did you mean 'htm_depth'?)"),
        ("model.name=fusion", "did you mean 'fusion_reid'?"),
        ("model.cnn=resnet5000", "resnet5000"),
        ("train.epochs=many", "train.epochs='many'"),
        ("train.epochs=0", "train.epochs=0"),
        ("augment.flip=1.5", "augment.flip=1.5"),
        ("train=3", "train is a section"),
        ("train.epochs", "is not an override"),
        ("model.fusion_dim=100", "fusion_heads=12, got 100"),
        ("model.cnn_weights=nowhere.safetensors", "model.cnn_weights=nowhere.safetensors: no such"),
        ("augment.erase_area=[0.5,0.1]", "augment: erase_area=[0.5, 0.1]"),
        ("dataset=[1]", "dataset=[1]"),
        ("seed=-1", "seed=-1"),
        ("registry.name=a/b", "registry.name='a/b'"),
        ("recipe=../up", "recipe='../up'"),
    ],
)
def test_wrong_override_is_named(override: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        load_recipe("demo", [override])
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["loss.id_margin=0.3"], "loss: id_margin=0.3 and id_scale=None have no effect on"),
        (["loss.id_scale=8"], "id_loss=softmax"),
        (["loss.id_loss=sphere"], "loss.id_loss='sphere'"),
        (["optim.nesterov=true"], "optim: nesterov=true is for name=sgd with momentum, got name=a"),
        (
            ["optim.name=sgd", "optim.nesterov=true", "optim.momentum=0"],
            "got name=sgd with momentum=0",
        ),
        (["optim.freeze=['']"], "optim.freeze.0=''"),
        (["schedule.hold_epoch=11"], "schedule: hold_epoch=11.0 lies behind the last epoch, 10"),
        (["schedule.hold_epoch=0.5"], "schedule: hold_epoch is not below warmup_epochs=1.0"),
        (["schedule.cosine_epochs=9"], "schedule: cosine_epochs=9.0, where the cosine ends"),
        (
            ["schedule.cosine_after_warmup=true", "schedule.warmup_epochs=10"],
            "leaves no cosine behind warmup_epochs=10.0",
        ),
        (
            ["average.kind=uniform", "average.start_epoch=11"],
            "average.start_epoch=11 lies behind the last epoch, train.epochs=10",
        ),
        (
            ["average.kind=ema", "average.start_epoch=4", "train.epochs=3"],
            "average.start_epoch=4 lies behind the last epoch, train.epochs=3",
        ),
        (["average.kind=mean"], "average.kind='mean'"),
        (["average.decay=1"], "average.decay=1"),
        (["unfreeze.start=0"], "unfreeze.start=0"),
        (["unfreeze.every=0.5"], "unfreeze.every=0.5"),
    ],
)
def test_settings_of_the_training_that_do_not_fit_are_one_line(
    overrides: list[str], says: str
) -> None:
    with pytest.raises(UserError) as refused:
        load_recipe("demo", ["train.epochs=10", *overrides])
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_identities_must_divide_among_workers() -> None:
    with pytest.raises(UserError, match="batch.identities=9 is not a multiple of train.workers=2"):
        load_recipe("demo", ["batch.identities=9", "train.workers=2"])


def test_both_losses_switched_off_is_refused() -> None:
    with pytest.raises(UserError, match="loss: id_weight and triplet_weight are both 0"):
        load_recipe("demo", ["loss.id_weight=0", "loss.triplet_weight=0"])


def test_files_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("demo", ["model.cnn_weights=w.safetensors"])
    assert recipe.model.weights_files() == {"cnn_weights": str(tmp_path / "w.safetensors")}
    named = load_recipe("demo", ["model.cnn_weights=timm"])
    assert named.model.weights_files() == {}
    assert load_recipe("demo", ["embed.model=./m"]).embed.model == str(tmp_path / "m")


def test_overrides_win_over_the_datasets_own_and_those_over_the_recipe() -> None:
    assert load_recipe("fusion_reid").batch.images == 16
    assert load_recipe("fusion_reid", ["dataset=pku_reid"]).batch.images == 8
    assert load_recipe("fusion_reid", ["dataset=pku_reid", "batch.images=4"]).batch.images == 4


def test_exponent_without_a_dot_is_a_number() -> None:
    assert load_recipe("demo", ["optim.lr=1e-3"]).optim.lr == 0.001


def test_a_colon_between_digits_is_no_number(tmp_path: Path) -> None:
    """YAML 1.1 reads 16:32 as 992, to the base of sixty."""
    wanted = ("16:32", "cnn", "0:768", "1_0:59")
    given = "[16:32, cnn, 0:768, 1_0:59]"
    recipe = load_recipe("demo", [f"evaluate.parts={given}"])
    assert recipe.evaluate.parts == wanted
    mine = tmp_path / "mine.yaml"
    mine.write_text(dump_recipe(recipe))
    assert load_recipe(str(mine)).evaluate.parts == wanted
    mine.write_text(dump_recipe(load_recipe("demo")).replace("parts: []", f"parts: {given}"))
    assert load_recipe(str(mine)).evaluate.parts == wanted


@pytest.mark.parametrize("text", ["12", "-3", "0x10", "1_000", "0.5", "1.0e-3", "true", "null"])
def test_other_values_are_those_of_yaml(text: str) -> None:
    assert load(text) == yaml.safe_load(text)
    assert load(f"[{text}, {{a: {text}}}]") == yaml.safe_load(f"[{text}, {{a: {text}}}]")


def test_file_is_named_when_it_is_no_recipe(tmp_path: Path) -> None:
    bad = ("- a\n", "recipe: [\n", "recipe: \u00e9\n", "dataset_overrides: [1]\n")
    for text in bad:
        path = tmp_path / "mine.yaml"
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(UserError, match="mine.yaml"):
            load_recipe(str(path))
    with pytest.raises(UserError, match="no such recipe file"):
        load_recipe(str(tmp_path / "other.yaml"))


def test_empty_dataset_overrides_are_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(dump_recipe(load_recipe("demo")) + "dataset_overrides:\n")
    assert load_recipe(str(path)) == load_recipe("demo")
    path.write_text(dump_recipe(load_recipe("demo")) + "dataset_overrides: {drawn: }\n")
    assert load_recipe(str(path)) == load_recipe("demo")


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'fusion_reid'"):
        load_recipe("fusionreid")
