"""One way to get a Ray: the cluster that RAY_ADDRESS names, or one inside this process."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray._private import worker
from ray.exceptions import AuthenticationError

from pipelines.errors import UserError

LOCAL_SLOTS = 8


@contextmanager
def ray_session(*, verbose: bool = False, dashboard: bool = False) -> Iterator[None]:
    """A connected Ray for the time of the block; one that was there before is left running.

    Without RAY_ADDRESS a Ray is started in this process and ends with it, also when it is killed.
    Its CPU slots are logical: stages wait for each other's tasks, so there are more of them than
    cores on a small machine. `dashboard` is needed where Tune stops trials early: Ray frees their
    workers through it.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    level = logging.INFO if verbose else logging.ERROR
    if address:
        try:
            ray.init(address=address, log_to_driver=verbose, logging_level=level)
        except (ConnectionError, ValueError, AuthenticationError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"RAY_ADDRESS={address}: this cluster cannot be used ({reason}); unset RAY_ADDRESS "
                "to run on this machine"
            ) from error
    else:
        if not verbose:
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with nullcontext() if verbose else _silent_stderr():
            ray.init(
                address="local",
                num_cpus=max(LOCAL_SLOTS, os.cpu_count() or 1),
                include_dashboard=dashboard,
                log_to_driver=verbose,
                logging_level=level,
            )
    quiet_ray(verbose=verbose)
    try:
        yield
    finally:
        ray.shutdown()


def quiet_ray(*, verbose: bool) -> None:
    """Keep Ray's own chatter and progress bars off the terminal unless asked for."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = verbose
    context.print_on_execution_start = verbose
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.ERROR)
    # Tune writes a failed trial's traceback as an error; the search names the cause in a line.
    logging.getLogger("ray.tune").setLevel(logging.INFO if verbose else logging.CRITICAL)
    if not verbose:
        # Ray prints its raylet's notices to stdout whatever `log_to_driver` says; stdout is for the
        # answer.
        worker.print_to_stdstream = _to_log


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what Ray's native code writes while it starts; failures still come as exceptions."""
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _to_log(data: dict[str, Any], ignore_prefix: object = None) -> None:
    logging.getLogger("ray").warning("%s: %s", data.get("pid"), "\n".join(data.get("lines", [])))


def slots(kind: str = "CPU") -> float:
    """CPUs or GPUs of the whole connected cluster."""
    return float(ray.cluster_resources().get(kind, 0.0))
