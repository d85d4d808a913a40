"""Training around the engine: what the weights depend on, and what is refused before or without a
second try."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray.train
import safetensors.torch
import timm
import torch

from pipelines.blocks import Blocks
from pipelines.console import Reporter, find_user_error
from pipelines.errors import UserError
from pipelines.identity_index import cameras_of, split_identities
from pipelines.ingest import open_blocks
from pipelines.recipe import Recipe
from pipelines.recipe_file import check_recipe, load_recipe
from pipelines.store import Folder, Store
from pipelines.train import prepare, run
from pipelines.training_fingerprint import search_fingerprint, training_fingerprint
from tests.conftest import TINY

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(str(tmp_path_factory.mktemp("train")))


@pytest.fixture(scope="module")
def blocks(ray_session: None, store: Store) -> Blocks:
    return open_blocks(tiny_recipe(), store, Reporter())


def tiny_recipe(*overrides: str) -> Recipe:
    return load_recipe("demo", [*TINY, *overrides])


def cnn_weights(path: Path, fill: float, name: str = "resnet10t") -> Path:
    trunk = timm.create_model(name, num_classes=0)
    state = {key: torch.full_like(value, fill) for key, value in trunk.state_dict().items()}
    safetensors.torch.save_file(state, path)
    return path


def test_weights_count_by_their_content_and_not_by_their_place(
    blocks: Blocks, tmp_path: Path
) -> None:
    prints = [
        training_fingerprint(tiny_recipe(f"model.cnn_weights={cnn_weights(path, fill)}"), blocks)
        for path, fill in (
            (tmp_path / "a.safetensors", 0.5),
            (tmp_path / "b.safetensors", 0.5),
            (tmp_path / "c.safetensors", 0.25),
        )
    ]
    assert prints[0] == prints[1]
    assert prints[0] != prints[2]


def test_the_embeddings_options_count_where_held_out_figures_are_taken(blocks: Blocks) -> None:
    def prints(key: Callable[[Recipe, Blocks], str], *overrides: str) -> set[str]:
        options = ("model.embed_features=all", "model.embed_features=[cnn_fused]")
        return {key(tiny_recipe(*overrides, option), blocks) for option in options}

    assert len(prints(training_fingerprint)) == 1
    assert len(prints(training_fingerprint, "data.holdout=0.5")) == 2
    assert len(prints(search_fingerprint)) == 2


def test_card_keeps_no_path_of_pretrained_weights(blocks: Blocks, tmp_path: Path) -> None:
    file = cnn_weights(tmp_path / "w.safetensors", 0.5)
    recipe = tiny_recipe(f"model.cnn_weights={file}")
    job, _ = prepare(recipe, blocks, Folder.open(str(tmp_path / "run")))
    assert job.recipe.model.options()["cnn_weights"] == str(file)
    assert job.card.options["cnn_weights"] is None
    assert str(tmp_path) not in str(job.card.to_dict())


def test_weights_that_do_not_fit_are_refused_without_a_second_try(
    blocks: Blocks, store: Store, tmp_path: Path
) -> None:
    file = cnn_weights(tmp_path / "other.safetensors", 0.5, name="mobilenetv2_035")
    recipe = tiny_recipe(f"model.cnn_weights={file}", "train.max_failures=2")
    with pytest.raises(ray.train.TrainingFailedError) as failed:
        run(recipe, store, Reporter())
    mistake = find_user_error(failed.value)
    assert mistake is not None
    assert "other.safetensors" in str(mistake)
    folder = store.room("runs", recipe.title, training_fingerprint(recipe, blocks))
    assert len(list(folder.local("ray").glob("attempt-*"))) == 1


def test_names_that_do_not_change_the_weights_do_not_change_the_folder(
    blocks: Blocks, store: Store
) -> None:
    plain, named = tiny_recipe(), tiny_recipe("registry.name=other", "registry.experiment=mine")
    assert plain.title == named.title
    assert named.model_name == "other"
    assert training_fingerprint(plain, blocks) == training_fingerprint(named, blocks)


def test_cameras_are_those_of_the_identities_that_are_trained_on(blocks: Blocks) -> None:
    train, held = split_identities(blocks, min_images=2, holdout=0.5)
    assert cameras_of(blocks, train) == ("c1", "c2")
    assert cameras_of(blocks, held) == ("c1", "c2")


def test_a_camera_that_only_left_out_identities_saw_is_unknown_to_the_model(
    ray_session: None, tmp_path: Path
) -> None:
    from PIL import Image

    for identity in range(9):
        folder = tmp_path / "crops" / f"p{identity}"
        folder.mkdir(parents=True)
        places = ("c9_0",) if identity == 7 else ("c1_0", "c2_0")
        for place in places:
            Image.new("RGB", (32, 64), (25 * identity, 90, 10)).save(folder / f"{place}.jpg")
    recipe = tiny_recipe("dataset=identity_folders", f"data.root={tmp_path / 'crops'}")
    blocks = open_blocks(recipe, Store.open(str(tmp_path / "store")), Reporter())
    entries = blocks.identities()
    train, _ = split_identities(blocks, min_images=2, holdout=0.0)
    lone = [name for name, _, _, rows in entries if rows == 1]
    assert len(lone) == 1
    assert lone[0] not in train.names
    assert cameras_of(blocks, train) == ("c1", "c2")


def la_recipe(**sections: dict[str, Any]) -> Recipe:
    plain = tiny_recipe("batch.identities=2", "data.holdout=0.5").to_dict()
    plain["model"] = {"name": "la_transformer", "transformer": "vit_tiny_patch16_224"}
    for section, values in sections.items():
        plain[section] |= values
    return check_recipe(plain, "test")


def test_two_workers_unfreeze_and_average(blocks: Blocks, store: Store) -> None:
    recipe = la_recipe(
        train={"workers": 2, "epochs": 3},
        unfreeze={"start": 1, "every": 1, "at_epoch0": False},
        average={"kind": "uniform", "start_epoch": 2},
    )
    done = run(recipe, store, Reporter())
    assert done.values["steps"] == 9
    assert set(done.values["metrics"]) == {"mAP", "mINP", "R1", "R5"}
    assert all(0 <= figure <= 100 for figure in done.values["metrics"].values())
    folder = Folder.open(done.uri)
    weights = safetensors.torch.load_file(folder.local("model.safetensors"))
    checkpoints = folder.local("checkpoints")
    ends = [
        safetensors.torch.load_file(checkpoints / f"step-{step:06d}" / "model.safetensors")
        for step in (6, 9)
    ]
    for name, tensor in weights.items():
        if name.endswith("num_batches_tracked"):
            assert tensor == 3
        elif "running" not in name:
            expected = (ends[0][name] + ends[1][name]) / 2
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-7)
    slots = safetensors.torch.load_file(checkpoints / "step-000006" / "optimizer.safetensors")
    opened = {name.split("blocks.")[1].split(".")[0] for name in slots if "blocks." in name}
    assert opened == {"11"}
    rows = json.loads((folder.local("metrics") / "validation-00000009.json").read_text())
    assert {"step": 9, **done.values["metrics"]} == rows


def test_what_the_model_does_not_have_is_refused_before_the_workers_start(
    blocks: Blocks, store: Store, tmp_path: Path
) -> None:
    for sections, says in (
        ({"optim": {"freeze": ["blokcs"]}}, r"optim\.freeze=\['blokcs'\]"),
        ({"loss": {"center_weight": 0.5}}, r"loss\.center_weight=0\.5"),
    ):
        with pytest.raises(UserError, match=says):
            prepare(la_recipe(**sections), blocks, Folder.open(str(tmp_path / "run")))


def test_the_average_counts_for_the_folder_of_a_run(blocks: Blocks) -> None:
    prints = {
        training_fingerprint(la_recipe(**sections), blocks)
        for sections in ({}, {"average": {"kind": "ema"}}, {"unfreeze": {"start": 2}})
    }
    assert len(prints) == 3


def test_more_workers_than_the_cluster_has_room_for(blocks: Blocks, store: Store) -> None:
    with pytest.raises(UserError, match=r"train\.workers=64"):
        run(tiny_recipe("train.workers=64", "batch.identities=64"), store, Reporter())
