"""Ray Train around a training job: start the workers, feed them, start them again when one dies.

Where to go on is read from the run's own checkpoints, by a new attempt as by a new command.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import ray
import ray.data
import ray.train
from ray.train.torch import TorchTrainer

from pipelines.checkpoints import latest_checkpoint, latest_step
from pipelines.console import find_user_error
from pipelines.engine import verify_checkpoint
from pipelines.feed import Feed, in_order
from pipelines.ray_session import slots
from pipelines.train_job import TrainJob
from pipelines.train_loop import CHECKPOINTS, train_loop

REASON_LENGTH = 300


def fit(
    job: TrainJob,
    feed: Feed,
    *,
    callbacks: list[ray.train.UserCallback] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, float]:
    """Run the job on the connected cluster; returns the last validation's figures.

    A failure of the workers is tried again from the newest checkpoint, `train.max_failures` times;
    a user's mistake is not: it would only fail again.
    """
    left = job.recipe.train.max_failures
    while True:
        try:
            return _attempt(job, feed, callbacks)
        except ray.train.TrainingFailedError as error:
            if left == 0 or find_user_error(error) is not None:
                raise
            left -= 1
            step = latest_step(job.run / CHECKPOINTS)
            say(f"train: a worker failed, going on from step {step}: {_reason(error)}")


def _reason(error: ray.train.TrainingFailedError) -> str:
    """The last line of the first worker's error, which holds its type and message."""
    first = next(iter(getattr(error, "worker_failures", {}).values()), error)
    return str(first).strip().splitlines()[-1][:REASON_LENGTH]


def _attempt(
    job: TrainJob, feed: Feed, callbacks: list[ray.train.UserCallback] | None
) -> dict[str, float]:
    checkpoints = job.run / CHECKPOINTS

    def dataset() -> "ray.data.Dataset":
        return feed.dataset(latest_step(checkpoints))

    newest = latest_checkpoint(checkpoints)
    if newest is not None:
        verify_checkpoint(newest)
    section = job.recipe.train
    trainer = TorchTrainer(
        train_loop,
        # By reference: Ray's controller would import torch and timm to read it.
        train_loop_config={"job": ray.put(job)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=section.workers, use_gpu=slots("GPU") > 0
        ),
        run_config=ray.train.RunConfig(
            # Ray's own bookkeeping of one attempt; the run's state is in its checkpoints.
            name=f"attempt-{uuid4().hex[:8]}",
            storage_path=str(job.run / "ray"),
            failure_config=ray.train.FailureConfig(max_failures=0),  # `fit` tries again
            callbacks=callbacks,
        ),
        datasets={"train": dataset},
        dataset_config=ray.train.DataConfig(
            execution_options=in_order(), enable_shard_locality=False
        ),
    )
    with _ctrl_c_interrupts():
        result = trainer.fit()
    return dict(result.return_value or {})


@contextmanager
def _ctrl_c_interrupts() -> Iterator[None]:
    """Ray Train installs its own SIGINT handler, which exits with status 0, and leaves it there."""
    previous = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as ended:
        raise KeyboardInterrupt from ended
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, previous)
