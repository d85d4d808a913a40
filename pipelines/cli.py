"""`reid`: every command of the pipeline. Thin: the work is in the stage modules, imported when
they are needed."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from pipelines.console import Reporter, emit, run_command
from pipelines.errors import UserError
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
    type=click.Choice(["market", "any_camera"]),
    help="With --embeddings, by default market; a recipe has evaluate.protocol.",
)
@common_options
def evaluate(
    recipe: str | None,
    overrides: tuple[str, ...],
    embeddings: str | None,
    protocol: str | None,
    store_uri: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Embeddings to numbers.

    \b
    Example: reid evaluate --embeddings embeddings.parquet --json
    """
    reporter = Reporter(verbose=verbose)
    if embeddings is not None:
        if recipe is not None:
            raise UserError(f"give a recipe ({recipe}) or --embeddings, not both")
        from pipelines.evaluate import as_json as plain
        from pipelines.evaluate import evaluate_file

        values = plain(evaluate_file(embeddings, protocol or "market"))
    elif recipe is not None:
        _refuse_beside_recipe({"--protocol": protocol})
        values = run_stage("evaluate", recipe, overrides, store_uri, reporter).values
    else:
        raise UserError("give a recipe or --embeddings FILE")
    _print_figures(values, reporter)
    if as_json:
        emit(values)


def _refuse_beside_recipe(options: dict[str, object]) -> None:
    """Options that describe an embeddings file say nothing about a recipe, which has keys for
    them."""
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} goes with --embeddings; a recipe takes key=value")


def _print_figures(values: dict[str, Any], reporter: Reporter) -> None:
    from pipelines.retrieval import describe_protocol

    figures = "  ".join(f"{name} {value:.2f}" for name, value in values["metrics"].items())
    reporter.say(figures)
    reporter.say(describe_protocol(values["protocol"]))


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


@reid.command()
@click.argument("gallery_uri", metavar="GALLERY")
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE..."
)
@click.option(
    "--top-k", default=10, show_default=True, type=click.IntRange(1), help="Hits an image."
)
@click.option("--camera", help="Camera of the images, where the model was trained with it.")
@click.option("--model", "model_folder", help="Folder of the gallery's model, if it was moved.")
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="Write the hits of the (first) image as a PNG.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout.")
def search(
    gallery_uri: str,
    images: tuple[Path, ...],
    top_k: int,
    camera: str | None,
    model_folder: str | None,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Who is this? The most similar gallery images.

    \b
    Example: reid search ./store/galleries/demo-drawn-0123456789ab person.jpg --picture hits.png
    """
    from pipelines.search import as_results
    from pipelines.search import search as search_gallery

    hits = search_gallery(gallery_uri, list(images), top_k=top_k, camera=camera, model=model_folder)
    if picture is not None:
        from pipelines.contact_sheet import contact_sheet

        contact_sheet(picture, str(images[0]), hits[0])
    results = as_results(list(images), hits)
    if as_json:
        emit({"results": results, "picture": str(picture) if picture else None})
        return
    for result in results:
        click.echo(result["query"])
        for place, hit in enumerate(result["hits"], start=1):
            click.echo(
                f"{place:4d}  {hit['score']:.4f}  id {hit['id']}  "
                f"{hit['identity']}  {hit['camera']}  {hit['key']}"
            )


for _module in ("cli_registry", "cli_lists", "cli_explain", "cli_import"):
    for _command in import_module(f"pipelines.{_module}").COMMANDS:
        reid.add_command(_command)


def main() -> None:
    """The console script."""
    run_command(reid)
