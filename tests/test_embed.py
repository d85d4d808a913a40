"""Embedding around the model: what is left out, and what is refused."""

import pytest

from pipelines import embed, evaluate
from pipelines.console import Reporter
from pipelines.datasets.drawn import DrawnConfig, draw_dataset
from pipelines.errors import UserError
from pipelines.recipe_file import load_recipe
from pipelines.store import Store
from tests.conftest import TINY

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a recipe on figures with junk, trained for an epoch by the first test that needs it."""
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
    return [*TINY, "dataset=market1501", f"data.root={root}", "train.epochs=1"]


@pytest.fixture(scope="module")
def store(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(str(tmp_path_factory.mktemp("store")))


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
