"""Embedding around the model: what is left out, and what is refused."""

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pipelines import embed, evaluate, run, train, tune
from pipelines.console import Reporter
from pipelines.datasets.drawn import DrawnConfig, draw_dataset
from pipelines.embedder import CARD, WEIGHTS, ModelCard
from pipelines.engine import save_weights
from pipelines.errors import UserError
from pipelines.gallery.manifest import read_manifest
from pipelines.ingest import open_blocks
from pipelines.recipe_file import load_recipe
from pipelines.stage import StageResult
from pipelines.store import Folder, Store, sha256_file
from pipelines.training_fingerprint import training_fingerprint
from tests.conftest import TINY

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a recipe on figures with junk."""
    root = tmp_path_factory.mktemp("figures")
    figures = DrawnConfig(
        train_identities=8,
        test_identities=4,
        cameras=2,
        images_per_camera=3,
        distractors=3,
        junk=5,
        image_size=(64, 32),
        seed=0,
    )
    draw_dataset(figures, root)
    return [*TINY, "dataset=market1501", f"data.root={root}"]


@pytest.fixture(scope="module")
def store(
    ray_session: None, overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Store:
    """Where the recipe has been trained, as far as embedding can tell."""
    store, recipe = (
        Store.open(str(tmp_path_factory.mktemp("store"))),
        load_recipe("demo", overrides),
    )
    blocks = open_blocks(recipe, store, Reporter())
    folder = store.room("runs", recipe.title, training_fingerprint(recipe, blocks)).make()
    card = ModelCard.of_recipe(recipe, cameras=("c1", "c2"), num_classes=8)
    folder.write_json(CARD, card.to_dict())
    torch.manual_seed(0)
    save_weights(folder.local(WEIGHTS), card.create_model())
    sha256 = sha256_file(folder.fs, folder.path(WEIGHTS))
    folder.commit({"weights_sha256": sha256, "steps": 0, "metrics": {}})
    return store


def test_junk_is_not_embedded_but_counted(overrides: list[str], store: Store) -> None:
    recipe, reporter = load_recipe("demo", overrides), Reporter()
    protocol = evaluate.run(recipe, store, reporter).values["protocol"]
    rows = embed.run(recipe, store, reporter).values["rows"]
    assert protocol["junk_removed"] == 5
    assert rows == protocol["gallery_size"] + protocol["queries_used"]


def test_more_actors_than_the_cluster_has_room_for(overrides: list[str], store: Store) -> None:
    recipe = load_recipe("demo", [*overrides, "embed.workers=64", "embed.rows_per_part=7"])
    with pytest.raises(UserError, match=r"embed\.workers=64"):
        embed.run(recipe, store, Reporter())


def test_other_features_of_the_same_training(overrides: list[str], store: Store) -> None:
    recipe = load_recipe("demo", overrides)
    fused = load_recipe("demo", [*overrides, "model.embed_features=[cnn_fused]"])
    usual, other = (embed.run(r, store, Reporter()) for r in (recipe, fused))
    assert usual.uri != other.uri
    assert usual.values["rows"] == other.values["rows"]
    assert other.values["dimension"] == 48
    assert len(list((store.folder / "runs").local().iterdir())) == 1


def copied(folder: str, out: Path) -> Path:
    shutil.copytree(folder, out)
    return out


def test_a_named_model_runs_without_training(
    overrides: list[str], store: Store, tmp_path: Path
) -> None:
    trained = train.run(load_recipe("demo", overrides), store, Reporter())
    folder = copied(trained.uri, tmp_path / "model")
    other = Store.open(str(tmp_path / "store"))

    def run_named(place: Path) -> StageResult:
        return run.run(load_recipe("demo", [*overrides, f"embed.model={place}"]), other, Reporter())

    first, again = run_named(folder), run_named(folder)
    assert not (tmp_path / "store" / "runs").exists()
    assert (first.skipped, again.skipped) == (False, True)
    assert "train" not in {*first.values["seconds"], *again.values["skipped"]}
    assert again.values["checkpoint"] == str(folder)
    own = evaluate.run(load_recipe("demo", overrides), store, Reporter())
    assert first.values["metrics"] == own.values["metrics"]
    moved = folder.rename(tmp_path / "moved")
    third = run_named(moved)
    assert third.values["gallery"] == first.values["gallery"]
    made_by = read_manifest(Folder.open(third.values["gallery"])).model
    assert (made_by["folder"], third.values["checkpoint"]) == (str(moved), str(moved))
    assert made_by["weights_sha256"] == trained.values["weights_sha256"]


def test_the_card_of_a_named_model_counts(
    overrides: list[str], store: Store, tmp_path: Path
) -> None:
    trained = train.run(load_recipe("demo", overrides), store, Reporter())
    folder = copied(trained.uri, tmp_path / "model")
    recipe = load_recipe("demo", [*overrides, f"embed.model={folder}"])
    blocks = open_blocks(recipe, store, Reporter())
    usual = run.pipeline_fingerprint(recipe, blocks)
    card = json.loads((folder / CARD).read_text())
    card["options"]["embed_features"] = ["cnn_fused"]
    (folder / CARD).write_text(json.dumps(card))
    assert run.pipeline_fingerprint(recipe, blocks) != usual
    assert train.open_named(recipe).card.embedding_dim == 48
    card["options"]["gone"] = 1
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(UserError, match="no option 'gone'"):
        train.open_named(recipe)


@pytest.mark.parametrize("stage", [run, evaluate, embed, tune], ids=lambda stage: stage.__name__)
def test_what_is_no_model_is_refused_before_the_data_is_read(
    overrides: list[str], store: Store, tmp_path: Path, stage: ModuleType
) -> None:
    recipe = load_recipe("demo", [*overrides, f"embed.model={tmp_path}"])
    unread = Store.open(str(tmp_path / "store"))
    with pytest.raises(UserError, match=r"no finished model lies there|a search trains its own"):
        stage.run(recipe, unread, Reporter())
    assert not (tmp_path / "store" / "blocks").exists()


def test_changed_weights_are_refused(overrides: list[str], store: Store, tmp_path: Path) -> None:
    trained = train.run(load_recipe("demo", overrides), store, Reporter())
    folder = copied(trained.uri, tmp_path / "model")
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"0")
    recipe = load_recipe("demo", [*overrides, f"embed.model={folder}"])
    with pytest.raises(UserError, match="is not the file that training or import left there"):
        train.open_named(recipe)
