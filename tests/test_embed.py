"""Embedding around the model: what is left out, and what is refused."""

from pathlib import Path

import pytest

from pipelines import embed, evaluate
from pipelines.console import Reporter
from pipelines.datasets.drawn import DrawnConfig, draw_dataset
from pipelines.errors import UserError
from pipelines.recipe_file import load_recipe
from pipelines.store import Store
from tests.conftest import TINY

pytestmark = pytest.mark.ray


def test_junk_is_not_embedded_but_counted(ray_session: None, tmp_path: Path) -> None:
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
    draw_dataset(figures, tmp_path / "images")
    recipe = load_recipe(
        "demo",
        [*TINY, "dataset=market1501", f"data.root={tmp_path / 'images'}", "train.epochs=1"],
    )
    store, reporter = Store.open(str(tmp_path / "store")), Reporter()
    protocol = evaluate.run(recipe, store, reporter).values["protocol"]
    rows = embed.run(recipe, store, reporter).values["rows"]
    assert protocol["junk_removed"] == 5
    assert rows == protocol["gallery_size"] + protocol["queries_used"]


def test_more_actors_than_the_cluster_has_room_for(ray_session: None, tmp_path: Path) -> None:
    recipe = load_recipe("demo", [*TINY, "embed.workers=64", "train.epochs=1"])
    with pytest.raises(UserError, match=r"embed\.workers=64"):
        embed.run(recipe, Store.open(str(tmp_path)), Reporter())
