"""`reid promote` and `reid rollback`: which version is in use. `reid tune`: which recipe is
best."""

from dataclasses import asdict

import click

from pipelines.console import Reporter, emit
from pipelines.stage import common_options, run_stage


@click.command()
@click.argument("name")
@click.argument("version", required=False, type=int)
@click.option(
    "--force", is_flag=True, help="Promote even what is worse, or was measured on other data."
)
@common_options
def promote(
    name: str, version: int | None, force: bool, store_uri: str, as_json: bool, verbose: bool
) -> None:
    """Make a version (the newest by default) the champion.

    \b
    Example: reid promote demo-drawn 2 --store ./demo
    """
    from pipelines.registry import Tracker
    from pipelines.registry import promote as promote_version

    result = promote_version(Tracker.open(store_uri), name, version, force=force)
    Reporter().say(f"{name}: version {result.version} is champion (before: {result.previous})")
    if as_json:
        emit(asdict(result))


@click.command()
@click.argument("name")
@common_options
def rollback(name: str, store_uri: str, as_json: bool, verbose: bool) -> None:
    """Make the champion before this one champion again.

    \b
    Example: reid rollback demo-drawn --store ./demo
    """
    from pipelines.registry import Tracker
    from pipelines.registry import rollback as roll_back

    version = roll_back(Tracker.open(store_uri), name)
    Reporter().say(f"{name}: version {version} is champion again")
    if as_json:
        emit({"name": name, "version": version, "alias": "champion"})


@click.command()
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--trials", type=click.IntRange(1), help="Recipes to try; the same as tune.trials=N.")
@common_options
def tune(
    recipe: str,
    overrides: tuple[str, ...],
    trials: int | None,
    store_uri: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Search for a better recipe; the best one is written as YAML.

    \b
    Example: reid tune demo --trials 6 --store ./demo
    """
    reporter = Reporter(verbose=verbose)
    chosen = (*overrides, f"tune.trials={trials}") if trials else overrides
    values = run_stage("tune", recipe, chosen, store_uri, reporter).values
    reporter.say(f"best of {len(values['trials'])} trials: {values['best']}")
    reporter.say(f"train it with: reid train {values['recipe']} --store {store_uri}")
    if as_json:
        emit(values)


COMMANDS = (promote, rollback, tune)
