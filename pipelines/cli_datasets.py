"""`reid datasets`: which datasets there are. `reid datasets check`: is a copy of one whole?"""

import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli_lists import align_columns
from pipelines.console import Reporter, emit
from pipelines.errors import UserError

if TYPE_CHECKING:
    from pipelines.datasets import Dataset
    from pipelines.datasets.check import Report
    from pipelines.datasets.contract import Variant

WIDTH = 100
INDENT = 4
LABEL = 10
NUMBERS = ("cameras", "junk", "distractors")


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout.")
@click.pass_context
def datasets(context: click.Context, as_json: bool) -> None:
    """The datasets and layouts that are read: what lies where, official counts, protocol, terms.

    A dataset is named NAME or NAME:VARIANT; NAME alone is its first variant. Counts are images and
    identities, junk and distractors being images of no identity.

    \b
    Example: reid datasets
    """
    from pipelines.datasets import list_datasets

    if context.invoked_subcommand is not None:
        if as_json:
            raise UserError(f"give --json behind `reid datasets {context.invoked_subcommand}`")
        return
    found = list_datasets()
    if as_json:
        emit({"datasets": [_entry(name, dataset) for name, dataset in found.items()]})
        return
    click.echo("\n\n".join("\n".join(_block(name, d)) for name, d in found.items()))


def _entry(name: str, dataset: "Dataset") -> dict[str, Any]:
    return {
        "name": name,
        **{
            field: getattr(dataset, field)
            for field in ("title", "layout", "source", "protocol", "protocol_note", "terms")
        },
        "variants": {variant: asdict(said) for variant, said in dataset.variants.items()},
    }


def _block(name: str, dataset: "Dataset") -> list[str]:
    """All of a dataset, in lines of at most WIDTH columns."""
    lines = [f"{name}: {dataset.title}"]
    for label in ("layout", "source", "protocol", "note", "terms"):
        text = getattr(dataset, "protocol_note" if label == "note" else label)
        lines += _paragraph(label, text)
    variants = {f"{name}:{key}" if key else name: said for key, said in dataset.variants.items()}
    for full, variant in variants.items():
        if variant.text:
            lines += _paragraph("variant", f"{full}: {variant.text}")
    if any(variant.counts for variant in variants.values()):
        lines += [" " * INDENT + line for line in align_columns(_counts(variants))]
    return lines


def _paragraph(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * INDENT + label.ljust(LABEL),
        subsequent_indent=" " * (INDENT + LABEL),
        break_on_hyphens=False,
    )


def _counts(variants: Mapping[str, "Variant"]) -> list[list[str]]:
    """A line a variant, without the columns that none has."""
    from pipelines.datasets import Count
    from pipelines.datasets.manifest import SPLITS

    table = [["images / identities", *SPLITS, *NUMBERS]]
    for name, variant in variants.items():
        counts = [variant.counts.get(split, Count()) for split in SPLITS]
        known = [(_number(count.images), _number(count.identities)) for count in counts]
        cells = [" / ".join(filter(None, pair)) for pair in known]
        table.append([name, *cells, *(_number(getattr(variant, what)) for what in NUMBERS)])
    kept = [place for place in range(len(table[0])) if any(line[place] for line in table[1:])]
    return [[line[place] for place in kept] for line in table]


def _number(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


@datasets.command()
@click.argument("name")
@click.argument("root")
@click.option(
    "--no-images", is_flag=True, help="Open no image: neither damage nor copies are looked for."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on the last line of stdout.")
def check(name: str, root: str, no_images: bool, as_json: bool) -> None:
    """Compare the dataset at ROOT with what was published; exit 2 if anything is wrong.

    Counts images, identities and cameras, and says what is missing, extra, unreadable, or there
    twice: across train and test, across query and gallery, or within a split.

    \b
    Example: reid datasets check market1501 /data/Market-1501-v15.09.15
    """
    from pipelines.datasets.check import check_dataset

    reporter = Reporter()
    report = check_dataset(name, root, reporter, with_images=not no_images)
    if as_json:
        emit(report.as_json())
    else:
        click.echo("\n".join([*align_columns(_figures(report)), *_remarks(report)]))
    if not report.ok:
        more = f" (and {len(report.problems) - 1} more)" if len(report.problems) > 1 else ""
        raise UserError(f"{name} at {root}: {report.problems[0]}{more}")
    reporter.say(f"{name} at {root}: no problem")


def _figures(report: "Report") -> list[list[str]]:
    table = [["", "found", "official"]]
    for scope, figures in report.counts.items():
        for what, figure in figures.items():
            name = what if scope == "all" else f"{scope} {what}"
            table.append([name, _number(figure.found), _number(figure.official)])
    return table


def _remarks(report: "Report") -> list[str]:
    problems = [f"problem: {problem}" for problem in report.problems]
    return problems + [f"note: {note}" for note in report.notes]


COMMANDS = (datasets,)
