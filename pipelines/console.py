"""What a person sees: progress on stderr, one JSON object on stdout, errors in one line."""

import atexit
import json
import os
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipelines.environment import prepare_environment
from pipelines.errors import UserError

INTERRUPTED = 130


@dataclass
class Bar:
    """A count that advances; `note` is a short text beside it."""

    update: Callable[[int, str], None]
    done: int = 0

    def advance(self, count: int, note: str = "") -> None:
        """Add to the count."""
        self.to(self.done + count, note)

    def to(self, done: int, note: str = "") -> None:
        """Set the count."""
        self.done = done
        self.update(done, note)


@dataclass
class Reporter:
    """Bars on a terminal, a line a stage elsewhere, nothing on stdout."""

    verbose: bool = False
    on_steps: list[Callable[[list[dict[str, float]], int], None]] = field(default_factory=list)
    """Called with the rows that training wrote, and their time in milliseconds."""
    parent_run: str | None = None
    """MLflow run that the runs of this command nest under."""
    results: dict[Hashable, Any] = field(default_factory=dict)
    """What the stages of this command made or found; see `pipelines.stage.once`."""
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, name: str, *, total: int, unit: str) -> Iterator[Bar]:
        """A progress bar for the time of the block; without a terminal, a line at its end."""
        if not self.console.is_terminal:
            start = time.monotonic()
            yield Bar(update=lambda done, note: None)
            self.say(f"{name}: {total} {unit} in {time.monotonic() - start:.1f} s")
            return
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(name, total=total, note="")
            yield Bar(update=lambda done, note: progress.update(task, completed=done, note=note))


def emit(value: dict[str, Any]) -> None:
    """The machine-readable result: one JSON object on one line of stdout."""
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
    sys.stdout.flush()


def run_command(command: click.Command, args: list[str] | None = None) -> None:
    """Run a command line and leave: 0, 2 for the user's mistake in one line, 130 for Ctrl-C, 1 for
    ours."""
    prepare_environment()
    try:
        command.main(args=args, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as help_:
        click.echo(help_.format_message())
        _leave(2)
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("reid: interrupted; the same command goes on from what is committed\n")
        _leave(INTERRUPTED)
    except click.ClickException as error:
        _fail(error.format_message())
    except UserError as error:
        _fail(str(error))
    except Exception as error:
        mistake = find_user_error(error)
        if mistake is None:
            raise
        _fail(str(mistake))
    _leave(0)


def _leave(status: int) -> NoReturn:
    """End the process once its exit handlers have run and its output is out.

    Native libraries would then take down their threads in an order that nobody controls: a command
    that had answered was seen to end with "terminate called without an active exception".
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(status)


def find_user_error(error: BaseException) -> UserError | None:
    """The user's mistake behind an error that came back from a worker process."""
    if isinstance(error, UserError):
        return error
    behind = [error.__cause__, error.__context__, getattr(error, "cause", None)]
    behind += getattr(error, "worker_failures", {}).values()
    behind += [getattr(error, "controller_failure", None), getattr(error, "_base_exc", None)]
    for inner in behind:
        if isinstance(inner, BaseException) and inner is not error:
            found = find_user_error(inner)
            if found is not None:
                return found
    return None


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"reid: {' '.join(message.split())}\n")
    _leave(2)
