"""`reid`: every command of the pipeline. Thin: the work is in the stage modules, imported when
they are needed."""

import json
from collections.abc import Sequence
from importlib import import_module
from typing import get_args

import click

from pipelines.console import Reporter, emit, run_command
from pipelines.errors import UserError
from pipelines.recipe_sections import Protocol
from pipelines.stage import common_options, run_stage, stage_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="rayreid")
def reid() -> None:
    """Re-identification on Ray: images with identities in, a promoted gallery out.

    \b
    Example: reid run fusion_reid dataset=market1501 data.root=/data/Market-1501-v15.09.15
    """


def _run(
    recipe: str, overrides: tuple[str, ...], store_uri: str, as_json: bool, verbose: bool
) -> None:
    from pipelines.results import print_table

    reporter = Reporter(verbose=verbose)
    result = run_stage("run", recipe, overrides, store_uri, reporter)
    print_table(result.values, reporter)
    if as_json:
        emit(result.values)


@reid.command(name="run")
@click.argument("recipe")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@common_options
def run_recipe(
    recipe: str, overrides: tuple[str, ...], store_uri: str, as_json: bool, verbose: bool
) -> None:
    """All stages, from images to a promoted version.

    \b
    Example: reid run fusion_reid dataset=identity_folders data.root=./crops --store ./store
    """
    _run(recipe, overrides, store_uri, as_json, verbose)


@reid.command()
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@common_options
def demo(overrides: tuple[str, ...], store_uri: str, as_json: bool, verbose: bool) -> None:
    """All stages on drawn figures: no data, no server, no download.

    \b
    Example: reid demo --store ./demo
    """
    _run("demo", overrides, store_uri, as_json, verbose)


STAGE_HELP = {
    "ingest": "Images to checked Parquet blocks.",
    "train": "Blocks to a trained model; goes on with a run that was stopped.",
    "embed": "Query and gallery images to embeddings.",
    "register": "The trained model and its gallery as a version in the registry.",
}
for _name, _text in STAGE_HELP.items():
    reid.add_command(
        stage_command(_name, f"{_text}\n\n\b\nExample: reid {_name} demo --store ./demo")
    )


@reid.command()
@click.argument("recipe", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--embeddings", help="An embeddings file or folder made anywhere, instead of a recipe."
)
@click.option(
    "--protocol",
    type=click.Choice(list(get_args(Protocol))),
    help="The same as evaluate.protocol=NAME; of an embeddings file by default market.",
)
@click.option("--rerank", is_flag=True, help="The same as evaluate.rerank=true.")
@common_options
def evaluate(
    recipe: str | None,
    overrides: tuple[str, ...],
    embeddings: str | None,
    protocol: str | None,
    rerank: bool,
    store_uri: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Embeddings to numbers: of a recipe, or of a file made anywhere.

    Both take evaluate.KEY=VALUE.

    \b
    Example: reid evaluate --embeddings embeddings.parquet --rerank evaluate.by_camera=false
    """
    from pipelines.figures_text import figure_lines

    reporter = Reporter(verbose=verbose)
    if embeddings is not None:
        from pipelines.evaluate import evaluate_command

        if recipe is not None and "=" not in recipe:
            raise UserError(f"give a recipe ({recipe}) or --embeddings, not both")
        given = (recipe, *overrides) if recipe is not None else overrides
        changes = _with_options(given, protocol, rerank)
        values = evaluate_command(embeddings, changes, reporter)
    elif recipe is not None:
        changes = _with_options(overrides, protocol, rerank)
        values = run_stage("evaluate", recipe, changes, store_uri, reporter).values
    else:
        raise UserError("give a recipe or --embeddings FILE")
    for line in figure_lines(values):
        reporter.say(line)
    if as_json:
        emit(values)


def _with_options(given: Sequence[str], protocol: str | None, rerank: bool) -> list[str]:
    """The overrides with those that the options stand for; one of each key."""
    options = {"protocol": protocol} if protocol else {}
    options |= {"rerank": "true"} if rerank else {}
    for name in options:
        for text in given:
            if text.startswith(f"evaluate.{name}="):
                raise UserError(f"--{name} and {text}: give one of them")
    return [*given, *(f"evaluate.{name}={value}" for name, value in options.items())]


def _refuse_beside_recipe(options: dict[str, object]) -> None:
    """Options that describe an embeddings file say nothing about a recipe, which has keys for
    them."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} goes with --embeddings; a recipe takes key=value")


@reid.group()
def gallery() -> None:
    """Build and look at galleries."""


@gallery.command(name="build")
@click.argument("recipe", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--embeddings", help="An embeddings file or folder made anywhere, instead of a recipe."
)
@click.option(
    "--out",
    help="With --embeddings: folder of the gallery; by default galleries/NAME in the store.",
)
@click.option("--index", help="With --embeddings: the index, by default flat.")
@click.option(
    "--shards", type=click.IntRange(1), help="With --embeddings: number of shards, by default 4."
)
@common_options
def gallery_build(
    recipe: str | None,
    overrides: tuple[str, ...],
    embeddings: str | None,
    out: str | None,
    index: str | None,
    shards: int | None,
    store_uri: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Embeddings to a gallery of FAISS shards.

    \b
    Example: reid gallery build --embeddings embeddings.parquet --shards 4 --out ./gallery
    """
    from pipelines.gallery_build import build_file

    reporter = Reporter(verbose=verbose)
    if embeddings is not None:
        if recipe is not None:
            raise UserError(f"give a recipe ({recipe}) or --embeddings, not both")
        values = build_file(embeddings, out, index or "flat", shards or 4, store_uri, reporter)
    elif recipe is not None:
        _refuse_beside_recipe({"--out": out, "--index": index, "--shards": shards})
        values = run_stage("gallery_build", recipe, overrides, store_uri, reporter).values
    else:
        raise UserError("give a recipe or --embeddings FILE")
    reporter.say(f"{values['rows']} rows in {values['shards']} shards: {values['gallery']}")
    if as_json:
        emit(values)


@gallery.command()
@click.argument("gallery_uri", metavar="GALLERY")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout.")
def verify(gallery_uri: str, as_json: bool) -> None:
    """Read every file of a gallery and list what is wrong; exit 2 if anything is.

    \b
    Example: reid gallery verify ./store/galleries/demo-drawn-0123456789ab
    """
    from pipelines.gallery import verify_gallery

    problems = verify_gallery(gallery_uri)
    if as_json:
        emit({"ok": not problems, "problems": problems})
    if problems:
        raise UserError("; ".join(problems))
    Reporter().say(f"{gallery_uri}: whole")


@gallery.command()
@click.argument("gallery_uri", metavar="GALLERY")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout.")
def info(gallery_uri: str, as_json: bool) -> None:
    """What a gallery holds and which model made it.

    \b
    Example: reid gallery info ./store/galleries/demo-drawn-0123456789ab
    """
    from pipelines.gallery import open_gallery

    values = open_gallery(gallery_uri).info()
    if as_json:
        emit(values)
    else:
        click.echo(json.dumps(values, indent=1))


for _module in (
    "cli_search",
    "cli_registry",
    "cli_datasets",
    "cli_lists",
    "cli_explain",
    "cli_import",
):
    for _command in import_module(f"pipelines.{_module}").COMMANDS:
        reid.add_command(_command)


def main() -> None:
    """The console script."""
    run_command(reid)
