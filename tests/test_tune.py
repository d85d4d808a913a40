"""The search: deterministic trials, real trainings, a recipe that `train` takes."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
from ray.exceptions import RayTaskError

from pipelines.console import Reporter, find_user_error
from pipelines.errors import UserError
from pipelines.recipe_file import load_recipe
from pipelines.store import Store
from pipelines.tune import apply, draw_trials, run, trial_recipe
from tests.commands import REID, interrupt, require_interrupted, run_states
from tests.conftest import TINY


def test_trials_are_a_function_of_the_recipe() -> None:
    recipe = load_recipe("demo", ["tune.trials=5"])
    drawn = draw_trials(recipe)
    assert drawn == draw_trials(recipe)
    assert drawn[0] == {}
    assert len({json.dumps(params, sort_keys=True) for params in drawn}) == 5
    assert drawn != draw_trials(load_recipe("demo", ["tune.trials=5", "seed=8"]))


def test_trial_holds_identities_out_and_leaves_the_rest_as_it_was() -> None:
    recipe = load_recipe("demo", ["tune.holdout=0.25", "tune.epochs=3"])
    trial = trial_recipe(recipe, {"model.htm_depth": 2})
    assert (trial.data.holdout, trial.train.epochs, trial.train.validate_epochs) == (0.25, 3, 1)
    assert trial.model.options()["htm_depth"] == 2
    assert apply(recipe, {}) == recipe


def test_warmup_keeps_its_share_in_trials_and_its_length_in_the_best_recipe() -> None:
    recipe = load_recipe("fusion_reid", ["tune.epochs=4"])
    assert trial_recipe(recipe, {}).schedule.warmup_epochs == pytest.approx(10 * 4 / 180)
    params = {"schedule.warmup_epochs": 45.0}
    assert trial_recipe(recipe, params).schedule.warmup_epochs == pytest.approx(1.0)
    assert apply(recipe, params).schedule.warmup_epochs == 45.0
    drawn = [p["schedule.warmup_epochs"] for p in draw_trials(recipe)[1:]]
    assert max(drawn) > 4


def test_all_that_is_counted_in_epochs_keeps_its_share_in_trials() -> None:
    settings = ["train.epochs=90", "tune.epochs=7", "schedule.warmup_epochs=9"]
    counted = ["schedule.cosine_epochs=90", "schedule.hold_epoch=72", "schedule.decay_epochs=18"]
    averaged = ["average.kind=uniform", "average.start_epoch=72", "unfreeze.every=30"]
    trial = trial_recipe(load_recipe("fusion_reid", settings + counted + averaged), {})
    assert trial.schedule.cosine_epochs == 7  # to the last bit, else it ends too early
    assert trial.schedule.hold_epoch == trial.average.start_epoch == pytest.approx(5.6)
    assert trial.schedule.decay_epochs == pytest.approx(1.4)
    assert trial.unfreeze.every == 2
    plain = trial_recipe(load_recipe("fusion_reid", ["tune.epochs=4"]), {})
    assert (plain.schedule.cosine_epochs, plain.schedule.hold_epoch) == (None, None)
    assert plain.unfreeze.every == 1


def test_wrong_parameter_is_refused() -> None:
    with pytest.raises(UserError, match="htm_depth"):
        apply(load_recipe("demo"), {"model.htm_depth": 0})


@pytest.mark.ray
@pytest.mark.slow
def test_search_whose_trials_all_fail_names_the_cause(ray_session: None, tmp_path: Path) -> None:
    trunk = timm.create_model("mobilenetv2_035", num_classes=0)
    file = tmp_path / "other.safetensors"
    safetensors.torch.save_file(trunk.state_dict(), file)
    settings = ("tune.trials=1", "tune.epochs=1", "tune.holdout=0.5", "batch.identities=2")
    recipe = load_recipe("demo", [*TINY, *settings, f"model.cnn_weights={file}"])
    with pytest.raises(RayTaskError) as failed:
        run(recipe, Store.open(str(tmp_path)), Reporter())
    assert "other.safetensors" in str(find_user_error(failed.value))
    assert not list(tmp_path.glob("runs/*/manifest.json"))


@pytest.mark.ray
@pytest.mark.slow
def test_interrupted_search_goes_on_and_writes_the_best_recipe(
    ray_session: None, tmp_path: Path
) -> None:
    settings = ("tune.trials=2", "tune.epochs=2", "tune.concurrent=2", "tune.holdout=0.5")
    overrides = [*TINY, *settings, "batch.identities=2"]
    command = [*REID, "tune", "demo", *overrides, "--store", str(tmp_path)]
    validated = "runs/*/trial-*/metrics/validation-*"
    require_interrupted(interrupt(command, lambda: any(tmp_path.glob(validated))))
    states = run_states(tmp_path)
    assert states["tune"] == ["KILLED"]
    assert "RUNNING" not in states.get("trial", [])
    assert not list(tmp_path.glob("runs/*/manifest.json"))

    recipe, store = load_recipe("demo", overrides), Store.open(str(tmp_path))
    found = run(recipe, store, Reporter())
    values = found.values
    assert not found.skipped
    assert len(values["trials"]) == 2
    assert all(1 <= trial["epochs"] <= 2 and trial["best"]["mAP"] > 0 for trial in values["trials"])
    best = max(values["trials"], key=lambda trial: trial["best"]["mAP"])
    assert values["best"] == best
    written = load_recipe(values["recipe"])
    for name, value in best["params"].items():
        section, key = name.split(".")
        assert getattr(getattr(written, section), key) == value

    assert run_states(tmp_path) == {"tune": ["FINISHED"], "trial": ["FINISHED"] * 2}

    again = run(recipe, store, Reporter())
    assert again.skipped
    assert json.loads(json.dumps(again.values)) == json.loads(json.dumps(values))
