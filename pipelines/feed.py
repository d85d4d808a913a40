"""The batch plan as a Ray Data dataset that Ray Train deals to its workers.

Every block belongs to one rank and holds whole per-rank batches of consecutive steps; blocks
alternate between the ranks, have equal row counts (but for the last round) and keep their order, so
`streaming_split(equal=True)`, which Ray Train uses, gives rank r the blocks r, r + world, r + 2
world, ... The training loop checks `step` in what arrives.

Memory: the encoded images of the training shards in the object store, read once by one task a
shard and rebuilt by Ray if a node is lost. A task holds the shards of one batch at a time; Ray may
spill the others. Besides, a few decoded blocks of at most `BLOCK_BYTES`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback

from pipelines.batches import BatchPlan, ImageReader
from pipelines.blocks import Blocks, read_shard
from pipelines.store import Folder

BLOCK_BYTES = 96 << 20
STEPS_PER_BLOCK = 10
PAUSE_SECONDS = 0.02


@dataclass(frozen=True)
class Feed:
    """Everything that the dataset of a training run depends on."""

    blocks: Blocks
    cameras: tuple[str, ...]
    """Names whose positions are the model's camera indices; any other camera is -1."""
    plan: BatchPlan
    reader: ImageReader
    world: int
    total_steps: int

    def rank_rows(self) -> int:
        """Images of one rank's batch."""
        return self.plan.batch_size // self.world

    def dataset(self, first_step: int) -> "ray.data.Dataset":
        """Batches of the steps first_step, ..., total_steps - 1; every row has `step` and
        `position`."""
        chunk = self._steps_per_block()
        starts = list(range(first_step, self.total_steps, chunk))
        needed = sorted(set(self.plan.index.shard_I.tolist()))
        shards = dict(
            zip(needed, [_load.remote(self.blocks.folder, n) for n in needed], strict=True)
        )
        world, total, produce = self.world, self.total_steps, self._produce

        def fetch(numbers: list[int]) -> dict[int, pa.Table]:
            return dict(zip(numbers, ray.get([shards[n] for n in numbers]), strict=True))

        def batches(block: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
            for number in block["id"].tolist():
                start, rank = starts[number // world], number % world
                rows = [
                    produce(step, rank, fetch) for step in range(start, min(start + chunk, total))
                ]
                yield {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

        count = len(starts) * world
        if count == 0:
            return ray.data.from_items([])
        dataset = ray.data.range(count, override_num_blocks=count).map_batches(
            batches, batch_size=None, num_cpus=1, zero_copy_batch=True
        )
        dataset.context.execution_options = in_order()
        dataset.context.custom_execution_callback_classes = [_Pause]
        return dataset

    def _steps_per_block(self) -> int:
        height, width = self.reader.size
        step_bytes = self.rank_rows() * height * width * 3
        return max(1, min(STEPS_PER_BLOCK, BLOCK_BYTES // step_bytes))

    def _produce(
        self, step: int, rank: int, fetch: Callable[[list[int]], dict[int, pa.Table]]
    ) -> dict[str, np.ndarray]:
        rows = self.plan.rows(step).of_rank(rank, self.world)
        tables = fetch(np.unique(rows.shard_B).tolist())
        columns = self.reader.read(rows, step, rank * self.rank_rows(), tables)
        known = {name: i for i, name in enumerate(self.cameras)}
        cameras = np.empty(len(rows.label_B), dtype=np.int64)
        for shard, table in tables.items():
            here = rows.shard_B == shard
            camera = table["camera"].take(pa.array(rows.row_B[here])).to_pylist()
            cameras[here] = [known.get(name, -1) for name in camera]
        return {**columns, "camera": cameras}


class _Pause(ExecutionCallback):
    """Ray Data's loop does not wait while finished blocks are held back for a slow consumer, as
    training is: it then takes half a core from the training threads."""

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(PAUSE_SECONDS)


def in_order() -> "ray.data.ExecutionOptions":
    """Execution options under which blocks keep their order; Ray Train has to be given them too."""
    return ray.data.ExecutionOptions(preserve_order=True)


# Not the default strategy: inside a Tune trial that would wait for room in the trial's own
# placement group, which its driver fills.
@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def _load(folder: Folder, number: int) -> pa.Table:
    return read_shard(folder, number, ["camera", "image"]).combine_chunks()
