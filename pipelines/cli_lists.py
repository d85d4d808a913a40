"""`reid recipes`, `reid models`: what there is."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from pipelines.console import emit

if TYPE_CHECKING:
    from pipelines.experiments import Published, RecipeFile

WIDTH = 98  # a hundred behind "# "
HEADLINES = ("mAP", "R1", "NMI")
AP_KINDS = (
    "AP: step, the precision at each hit; trapezoid, the mean of those before and at it; "
    "top10, over ten answers only; -, not said."
)
HEADER = ("RECIPE", "SYSTEM", "DATASET", "SIZE", "PUBLISHED", "AP", "REF")


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout.")
def recipes(name: str | None, as_json: bool) -> None:
    """The recipes that come along, or one of them with every key.

    With their experiments and the figures that were published for them.

    \b
    Example: reid recipes fusion_reid/market_l2 > mine.yaml
    """
    from pipelines.recipe_file import dump_recipe, list_recipes, load_recipe, open_recipe

    if name is not None:
        recipe = load_recipe(name)
        if as_json:
            emit(recipe.to_dict())
            return
        file, experiment = open_recipe(name)
        click.echo(dump_recipe(recipe), nl=False)
        for line in _comments(file, name, experiment):
            click.echo(f"# {line}".rstrip())
        return
    files = {found: open_recipe(found)[0] for found in list_recipes()}
    if as_json:
        emit(
            {
                "recipes": list(files),
                "experiments": [row for found, file in files.items() for row in _rows(found, file)],
                "departures": {found: list(file.departures) for found, file in files.items()},
            }
        )
        return
    for found, file in files.items():
        click.echo("\n".join(_table(found, file)) + "\n")
    click.echo("\n".join(textwrap.wrap(AP_KINDS, WIDTH)))


def _rows(name: str, file: "RecipeFile") -> list[dict[str, Any]]:
    """The recipe itself and each of its experiments."""
    from pipelines.recipe_sections import InputSection

    rows = []
    for experiment in (None, *file.experiments):
        plain = file.resolve(experiment)
        published = None if experiment is None else file.experiments[experiment].published
        rows.append(
            {
                "name": name if experiment is None else f"{name}/{experiment}",
                "system": plain.get("model", {}).get("name"),
                "dataset": plain.get("dataset"),
                "image_size": list(InputSection(**plain.get("input", {})).image_size),
                "published": None if published is None else published.model_dump(mode="json"),
            }
        )
    return rows


def _table(name: str, file: "RecipeFile") -> list[str]:
    """Lines of at most WIDTH columns; the sources stand below, by number."""
    sources: list[str] = []
    cells: list[Sequence[str]] = []
    for row, experiment in zip(_rows(name, file), (None, *file.experiments.values()), strict=True):
        published = None if experiment is None else experiment.published
        if published is not None and published.source not in sources:
            sources.append(published.source)
        height, width = row["image_size"]
        number = "" if published is None else f"[{1 + sources.index(published.source)}]"
        cells.append(
            [
                *(row[key] for key in ("name", "system", "dataset")),
                f"{height}x{width}",
                _headlines(published),
                _formula(published),
                number,
            ]
        )
    shown = len(HEADER) if sources else HEADER.index("PUBLISHED")
    lines = align_columns([line[:shown] for line in (HEADER, *cells)])
    for place, source in enumerate(sources, start=1):
        lines += textwrap.wrap(f"[{place}] {source}", WIDTH, subsequent_indent="    ")
    return lines


def _formula(published: "Published | None") -> str:
    found = published.ap if published else None
    return "-" if found == "unknown" else found or ""


def _headlines(published: "Published | None") -> str:
    figures = {} if published is None else published.figures
    return "  ".join(f"{key} {figures[key]:.1f}" for key in HEADLINES if key in figures)


def align_columns(table: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]


def _comments(file: "RecipeFile", name: str, experiment: str | None) -> list[str]:
    """What the file holds beside the recipe, to stand below it as comments."""
    lines: list[str] = []
    if experiment is None and file.experiments:
        lines += ["", "Experiments:", *_table(name, file)]
    published = None if experiment is None else file.experiments[experiment].published
    if published is not None:
        lines += ["", "Published:", *_published(published)]
    if file.departures:
        lines += ["", "Departures from what was published:"]
    for sentence in file.departures:
        lines += textwrap.wrap(f"- {sentence}", WIDTH, subsequent_indent="  ")
    return lines


def _published(published: "Published") -> list[str]:
    lines = []
    if published.figures:
        figures = ", ".join(f"{key} {value:g}" for key, value in published.figures.items())
        lines.append(figures + (f" ({published.ap} average precision)" if published.ap else ""))
    for feature, (mean_ap, rank1) in published.features.items():
        lines.append(f"{feature}: mAP {mean_ap:g}, R1 {rank1:g}")
    for text in (published.note, f"Source: {published.source}"):
        lines += textwrap.wrap(text, WIDTH) if text else []
    return lines


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout.")
def models(as_json: bool) -> None:
    """The systems: size, cost, embedding.

    As published, for 751 identities and 6 cameras: parameters, with the heads of training;
    multiply-adds of an embedding; its dimension.

    \b
    Example: reid models
    """
    from dataclasses import asdict

    import torch

    import reid_models
    from reid_models import create_model, profile_model, published_image_size

    rows = []
    for name in reid_models.list_models():
        with torch.device("meta"):
            size = published_image_size(name)
            model = create_model(name, 751, image_size=size, camera_count=6)
            rows.append({"name": name, **asdict(profile_model(model))})
    if as_json:
        emit({"models": rows})
        return
    for row in rows:
        height, width = row["image_size"]
        click.echo(
            f"{row['name']:<18}{row['params'] / 1e6:6.1f} M parameters  {row['gmac']:5.1f} GMAC  "
            f"embedding {row['embedding_dim']:5d}  {height}x{width} pixels"
        )


COMMANDS = (recipes, models)
