"""The plan through Ray Data: the same batches as a plain loop, for one worker and for several."""

from pathlib import Path

import numpy as np
import pytest
import ray

from pipelines.batches import BatchPlan
from pipelines.blocks import Blocks, read_shard
from pipelines.console import Reporter
from pipelines.feed import Feed, _Pause
from pipelines.ingest import open_blocks
from pipelines.recipe_file import load_recipe
from pipelines.store import Folder, Store
from pipelines.train import prepare

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def feed(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Feed:
    from tests.conftest import TINY

    folder = tmp_path_factory.mktemp("feed")
    recipe = load_recipe("demo", [*TINY, "train.steps_per_epoch=6"])
    blocks = open_blocks(recipe, Store.open(str(folder)), Reporter())
    return prepare(recipe, blocks, Folder.open(str(folder / "run")))[1]


def plain_loop(feed: Feed, first: int) -> list[dict[str, np.ndarray]]:
    """The slow obvious way: one process, no Ray, global batches."""
    numbers = [shard["shard"] for shard in feed.blocks.shards("train")]
    tables = {number: read_shard(feed.blocks.folder, number) for number in numbers}
    batches = []
    for step in range(first, feed.total_steps):
        rows = feed.plan.rows(step)
        batch = feed.reader.read(rows, step, 0, tables)
        places = zip(rows.shard_B.tolist(), rows.row_B.tolist(), strict=True)
        names = [tables[shard]["camera"][row].as_py() for shard, row in places]
        batch["camera"] = np.array([feed.cameras.index(name) for name in names])
        batches.append(batch)
    return batches


@pytest.mark.parametrize(("world", "first"), [(1, 0), (2, 0), (2, 5), (4, 3)])
def test_workers_see_the_batches_of_a_plain_loop(feed: Feed, world: int, first: int) -> None:
    here = Feed(feed.blocks, feed.cameras, feed.plan, feed.reader, world, feed.total_steps)
    shares = here.dataset(first).streaming_split(world, equal=True)

    @ray.remote(num_cpus=0)
    def read(share: ray.data.DataIterator) -> list[dict[str, np.ndarray]]:
        batches = share.iter_batches(batch_size=here.rank_rows(), batch_format="numpy")
        return [{name: column.copy() for name, column in batch.items()} for batch in batches]

    by_rank = ray.get([read.remote(share) for share in shares])
    expected = plain_loop(feed, first)
    for got, batch in zip(zip(*by_rank, strict=True), expected, strict=True):
        for name, column in batch.items():
            assert np.array_equal(np.concatenate([part[name] for part in got]), column), name


def test_labels_name_the_identity_that_the_rows_hold(feed: Feed) -> None:
    rows = feed.plan.rows(1)
    for shard, row, label in zip(rows.shard_B, rows.row_B, rows.label_B, strict=True):
        identity = read_shard(feed.blocks.folder, int(shard))["identity"][int(row)].as_py()
        assert identity == feed.plan.index.names[label]


def test_plan_is_the_same_for_other_shard_sizes(feed: Feed, tmp_path: Path, tiny: tuple) -> None:
    recipe = load_recipe("demo", [*tiny, "data.rows_per_shard=100"])
    other = open_blocks(recipe, Store.open(str(tmp_path)), Reporter())
    assert len(other.shards("train")) != len(feed.blocks.shards("train"))
    assert other.fingerprint == feed.blocks.fingerprint
    plan = prepare(recipe, other, Folder.open(str(tmp_path / "run")))[1].plan
    for step in (0, 3):
        assert _keys(other, plan, step) == _keys(feed.blocks, feed.plan, step)


def _keys(blocks: Blocks, plan: BatchPlan, step: int) -> list[str]:
    rows = plan.rows(step)
    places = zip(rows.shard_B.tolist(), rows.row_B.tolist(), strict=True)
    return [read_shard(blocks.folder, shard)["key"][row].as_py() for shard, row in places]


def test_the_loop_of_ray_data_pauses(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its pause the loop spins while training is slower than decoding."""
    steps = []
    monkeypatch.setattr(_Pause, "on_execution_step", lambda self, executor: steps.append(1))
    assert sum(1 for _ in feed.dataset(0).iter_batches(batch_size=None)) > 0
    assert steps
