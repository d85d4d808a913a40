"""Embedding around the model: what is left out, and what is refused."""

from pathlib import Path

import pytest
import torch

from pipelines import embed, evaluate, gallery_build, train
from pipelines.console import Reporter
from pipelines.datasets.drawn import DrawnConfig, draw_dataset
from pipelines.embedder import CARD, WEIGHTS, ModelCard
from pipelines.engine import save_weights
from pipelines.errors import UserError
from pipelines.gallery.manifest import read_manifest
from pipelines.ingest import open_blocks
from pipelines.recipe_file import load_recipe
from pipelines.store import Folder, Store, sha256_file
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
    run = store.room("runs", recipe.title, train.training_fingerprint(recipe, blocks)).make()
    card = ModelCard.of_recipe(recipe, cameras=("c1", "c2"), num_classes=8)
    run.write_json(CARD, card.to_dict())
    torch.manual_seed(0)
    save_weights(run.local(WEIGHTS), card.create_model())
    sha256 = sha256_file(run.fs, run.path(WEIGHTS))
    run.commit({"weights_sha256": sha256, "steps": 0, "metrics": {}})
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


def test_a_named_model_embeds_without_training(
    overrides: list[str], store: Store, tmp_path: Path
) -> None:
    recipe = load_recipe("demo", overrides)
    trained = train.run(recipe, store, Reporter())
    other_store = Store.open(str(tmp_path))
    named = load_recipe("demo", [*overrides, f"embed.model={trained.uri}"])
    theirs = gallery_build.run(named, other_store, Reporter())
    assert not (tmp_path / "runs").exists()
    made_by = read_manifest(Folder.open(theirs.uri)).model
    assert made_by["weights_sha256"] == trained.values["weights_sha256"]
    assert made_by["folder"] == trained.uri
    figures = [evaluate.run(r, s, Reporter()) for r, s in ((recipe, store), (named, other_store))]
    assert figures[0].values == figures[1].values
    nowhere = load_recipe("demo", [*overrides, f"embed.model={tmp_path}"])
    with pytest.raises(UserError, match=r"embed\.model=.*no finished model lies there"):
        embed.run(nowhere, other_store, Reporter())
