"""What all stages share: their result, and how one becomes a command and a script.

Every stage module has `run(recipe, store, reporter) -> StageResult`. It makes what it needs from
the stages before it, or finds that made. `python pipelines/STAGE.py RECIPE key=value` and `reid
STAGE RECIPE key=value` are the same command, so `ray submit` takes the file as it is.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pipelines.console import Reporter, emit, run_command
from pipelines.store import Store, fingerprint

if TYPE_CHECKING:
    from pipelines.recipe import Recipe

Command = TypeVar("Command", bound=Callable[..., Any])
StageRun = Callable[["Recipe", Store, Reporter], "StageResult"]


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage made or found."""

    stage: str
    skipped: bool
    """Whether it was committed before and nothing was done."""
    uri: str
    """The committed folder."""
    values: dict[str, Any] = field(default_factory=dict)
    """The stage's part of the JSON answer."""


def once(run: StageRun) -> StageRun:
    """A stage's `run` that looks only once in a command: the stages after it ask for its result
    again."""

    def looked_up(recipe: "Recipe", store: Store, reporter: Reporter) -> StageResult:
        key = (run.__module__, fingerprint(recipe.to_dict()), store.uri)
        if key not in reporter.results:
            reporter.results[key] = run(recipe, store, reporter)
        return reporter.results[key]

    return wraps(run)(looked_up)


def common_options(command: Command) -> Command:
    """`--store`, `--json` and `--verbose`, the same for every command."""
    options = (
        click.option(
            "--store",
            "store_uri",
            default="./store",
            show_default=True,
            help="Folder or URI of the store.",
        ),
        click.option(
            "--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout."
        ),
        click.option("--verbose", is_flag=True, help="Show Ray's own messages."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def run_stage(
    name: str, recipe: str, overrides: Sequence[str], store_uri: str, reporter: Reporter
) -> StageResult:
    """Run the stage module `pipelines.NAME` on a recipe and say what came of it."""
    from pipelines.recipe_file import load_recipe

    checked = load_recipe(recipe, overrides)
    start = time.monotonic()
    store = Store.open(store_uri)
    result: StageResult = import_module(f"pipelines.{name}").run(checked, store, reporter)
    state = "already committed" if result.skipped else "committed"
    reporter.say(f"{name}: {state} in {result.uri} ({time.monotonic() - start:.1f} s)")
    return result


def stage_command(name: str, text: str = "") -> click.Command:
    """The command of the stage module `pipelines.NAME`."""

    @click.command(name=name, help=text)
    @click.argument("recipe")
    @click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
    @common_options
    def command(
        recipe: str, overrides: tuple[str, ...], store_uri: str, as_json: bool, verbose: bool
    ) -> None:
        start = time.monotonic()
        result = run_stage(name, recipe, overrides, store_uri, Reporter(verbose=verbose))
        if as_json:
            skipped = [name] if result.skipped else []
            emit({"skipped": skipped, "seconds": {name: time.monotonic() - start}, **result.values})

    return command


def stage_script(name: str) -> None:
    """Run a stage module as a script. The module is imported under its full name, so that its
    functions reach Ray workers by reference; its folder leaves the search path, where it would
    shadow other packages' names."""
    here = Path(sys.argv[0]).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    run_command(stage_command(name))
