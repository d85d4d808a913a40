"""Batches with so many images of each view: against dealing by hand, and their promises."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.batches import BatchPlan
from pipelines.blocks import BLOCK_SCHEMA, Blocks, read_shard, write_shard
from pipelines.counter_random import permutation
from pipelines.datasets import read_dataset
from pipelines.errors import UserError
from pipelines.identity_index import IdentityIndex, find_views, split_identities
from pipelines.ingest import plan_shards
from pipelines.pack import pack_shard
from pipelines.recipe import Recipe
from pipelines.recipe_file import dump_recipe, load_recipe
from pipelines.store import Folder
from pipelines.train import prepare
from pipelines.training_fingerprint import training_fingerprint
from tests.conftest import TINY

VIEWS = {"satellite": 1, "drone": 3}
DRONES = {"0839": 7, "0840": 2, "0842": 3, "0843": 5, "0845": 0, "0846": 6}
"""Drone images of the buildings; 0842 has no satellite image."""


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Blocks:
    """University-1652 in miniature, packed in two shards of train images and more."""
    root = tmp_path_factory.mktemp("university")
    paths = [f"train/drone/{name}/{n}.jpeg" for name, count in DRONES.items() for n in range(count)]
    paths += [f"train/satellite/{name}/{name}.jpg" for name in DRONES if name != "0842"]
    paths += [f"train/street/{name}/{n}.jpg" for name in ("0839", "0842") for n in range(2)]
    paths += ["train/google/0839/a.jpg", "train/google/0843/b.jpg"]
    paths += [f"test/query_satellite/{name}/{name}.jpg" for name in ("0000", "0001")]
    paths += [f"test/gallery_drone/{name}/1.jpeg" for name in ("0000", "0001")]
    for number, path in enumerate(paths):
        (root / "sets" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 12), (5 * number % 256, 80, 40)).save(root / "sets" / path)
    return pack(
        Folder.open(str(root / "blocks")).make(),
        read_dataset("university1652", str(root / "sets")),
        12,
    )


def pack(folder: Folder, manifest: pa.Table, rows_per_shard: int) -> Blocks:
    cuts = plan_shards(manifest, rows_per_shard)
    stats = [
        pack_shard(folder, number, manifest.slice(start, stop - start))
        for number, (start, stop) in enumerate(cuts)
    ]
    of_train = [stat for stat in stats if stat["split"] == "train"]
    assert len(of_train) > 1
    identities = [entry for stat in of_train for entry in stat["identities"]]
    return Blocks(folder, {"identities": identities, "fingerprint": "0" * 64})


def images_of(blocks: Blocks) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Row by row: where the images of (identity, view) lie, in the order of their keys."""
    found: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for shard in sorted({entry[1] for entry in blocks.identities()}):
        rows = read_shard(blocks.folder, shard, ["identity", "view"]).to_pylist()
        for number, row in enumerate(rows):
            found.setdefault((row["identity"], row["view"]), []).append((shard, number))
    return found


def make_plan(blocks: Blocks, *, views: dict[str, int] = VIEWS, identities: int = 2) -> BatchPlan:
    whole, _ = split_identities(blocks, min_images=2, holdout=0.0)
    index, rows = find_views(blocks, whole, views)
    return BatchPlan(index, 5, identities, sum(views.values()), views=rows)


class Deck:
    """An identity's images of one view, dealt from a real deck."""

    def __init__(self, images: list[tuple[int, int]], taken: int, *stream: int | str) -> None:
        self.images, self.taken, self.stream = images, taken, stream
        self.shuffles, self.cards = 0, []

    def hand(self) -> list[tuple[int, int]]:
        if not self.cards:
            order = permutation(len(self.images), *self.stream, self.shuffles)
            self.full = [self.images[i] for i in order]
            self.cards, self.shuffles = list(self.full), self.shuffles + 1
        dealt, self.cards = self.cards[: self.taken], self.cards[self.taken :]
        while len(dealt) < self.taken:
            dealt += self.full[: self.taken - len(dealt)]
        return dealt


def slow_batches(blocks: Blocks, plan: BatchPlan, steps: int) -> list[list[tuple[int, int, int]]]:
    """(shard, row, label) of the steps from the first one on."""
    images, names = images_of(blocks), plan.index.names
    decks = [
        [
            Deck(images[name, view], taken, "view deck", plan.seed, view, label)
            for view, taken in VIEWS.items()
        ]
        for label, name in enumerate(names)
    ]
    queue: list[int] = []
    batches, passes = [], 0
    for _ in range(steps):
        if len(queue) < plan.identities:
            queue = permutation(len(names), "identity order", plan.seed, passes).tolist()
            hands = [[image for deck in mine for image in deck.hand()] for mine in decks]
            passes += 1
        taken, queue = queue[: plan.identities], queue[plan.identities :]
        batches.append([(*image, label) for label in taken for image in hands[label]])
    return batches


def rows(plan: BatchPlan, step: int) -> list[tuple[int, int, int]]:
    found = plan.rows(step)
    columns = (found.shard_B, found.row_B, found.label_B)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_plan_equals_dealing_view_by_view(blocks: Blocks) -> None:
    plan = make_plan(blocks)
    expected = slow_batches(blocks, plan, 40)
    assert [rows(plan, step) for step in range(40)] == expected
    assert rows(make_plan(blocks), 29) == expected[29]  # nothing is carried along


def test_every_group_is_made_of_the_views_in_their_order(blocks: Blocks) -> None:
    view_of = {place: key for key, places in images_of(blocks).items() for place in places}
    for views in (VIEWS, {"drone": 2, "satellite": 2}):
        plan = make_plan(blocks, views=views)
        expected = [view for view, count in views.items() for _ in range(count)]
        for step in range(20):
            batch = rows(plan, step)
            for start in range(0, len(batch), len(expected)):
                group = batch[start : start + len(expected)]
                said = [view_of[shard, row] for shard, row, _ in group]
                assert [view for _, view in said] == expected
                assert {name for name, _ in said} == {plan.index.names[group[0][2]]}
            ranks = [plan.rows(step).of_rank(rank, 2).row_B for rank in range(2)]
            assert np.array_equal(np.concatenate(ranks), plan.rows(step).row_B)


def test_every_image_of_the_views_is_shown_and_no_other(blocks: Blocks) -> None:
    plan = make_plan(blocks)
    names = [f"university1652/{name}" for name in ("0839", "0840", "0843", "0846")]
    assert list(plan.index.names) == names  # neither 0842 nor 0845
    seen = Counter((shard, row) for step in range(40) for shard, row, _ in rows(plan, step))
    images = images_of(blocks)
    wanted = {place for name in names for view in VIEWS for place in images[name, view]}
    assert set(seen) == wanted
    assert plan.used_images == len(wanted) == 4 + 20
    assert plan.steps_per_epoch == round(24 / 8)


def test_the_full_set_uses_its_satellite_and_drone_images(tmp_path: Path) -> None:
    """701 buildings: a satellite and 54 drone images each, and 11,663 of the street and the web."""
    others = np.bincount(np.arange(11_663) % 701, minlength=701).tolist()
    views = [["drone"] * 54 + ["satellite"] + ["street"] * count for count in others]
    entries, column = [], []
    for number, of_building in enumerate(views):
        entries.append((f"university1652/{number:04d}", 0, len(column), len(of_building)))
        column += of_building
    columns = {name: pa.repeat("x", len(column)) for name in BLOCK_SCHEMA.names}
    columns |= {"view": pa.array(column), "time": pa.nulls(len(column), pa.int64())}
    folder = Folder.open(str(tmp_path)).make()
    write_shard(folder, 0, pa.table(columns), {})
    plan_views = {"satellite": 1, "drone": 5}
    index, found = find_views(Blocks(folder, {}), IdentityIndex.of(entries), plan_views)
    plan = BatchPlan(index, 1, 8, 6, views=found)
    assert (len(index), index.images, plan.used_images) == (701, 50_218, 38_555)
    assert plan.steps_per_epoch == round(38_555 / 48)


def test_views_that_nobody_has_are_named(blocks: Blocks) -> None:
    says = "no identity has images of all .* training images: drone, google, satellite, street"
    with pytest.raises(UserError, match=says):
        make_plan(blocks, views={"satellite": 1, "dron": 5})
    with pytest.raises(UserError, match="only 4 train identities have all of batch.views"):
        make_plan(blocks, identities=5)


def view_recipe(*overrides: str) -> Recipe:
    return load_recipe("demo", [*TINY, "batch.images=4", "batch.identities=2", *overrides])


def test_training_says_what_it_trains_on(blocks: Blocks, tmp_path: Path) -> None:
    run, said = Folder.open(str(tmp_path)), []
    recipe = view_recipe("batch.views={satellite: 1, drone: 3}", "train.steps_per_epoch=null")
    job, feed = prepare(recipe, blocks, run, say=said.append)
    assert said == [
        "train: 24 images, 4 identities of 1 domain (university1652 4); "
        "1 left out, for they lack a view of batch.views"
    ]
    assert (job.card.num_classes, job.schedule.steps_per_epoch) == (4, 3)
    assert rows(feed.plan, 7) != []
    prepare(view_recipe(), blocks, run, say=said.append)
    assert said[1:] == ["train: 33 images, 5 identities of 1 domain (university1652 5)"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["batch.views={satellite: 1, drone: 5}"], "are 6 images of an identity, and images=4"),
        (["batch.views={satellite: 0, drone: 4}"], "batch.views.satellite=0"),
        (["batch.views={drone: 4}", "batch.sampler=shuffle"], "which sampler=shuffle does not"),
        (["batch.views=drone"], "batch.views"),
    ],
)
def test_views_that_make_no_group_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(UserError) as refused:
        view_recipe(*overrides)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_views_and_their_order_name_the_training(blocks: Blocks, tmp_path: Path) -> None:
    prints = set()
    for views in ("{}", "{satellite: 1, drone: 3}", "{drone: 3, satellite: 1}", "{drone: 4}"):
        recipe = view_recipe(f"batch.views={views}")
        path = tmp_path / "dumped.yaml"
        path.write_text(dump_recipe(recipe))
        again = load_recipe(str(path))
        assert list(again.batch.views.items()) == list(recipe.batch.views.items())
        assert training_fingerprint(again, blocks) == training_fingerprint(recipe, blocks)
        prints.add(training_fingerprint(recipe, blocks))
    assert len(prints) == 4
