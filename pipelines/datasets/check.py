"""Is a dataset on disk what was published, and what is wrong with it?

Problems are what makes figures on this copy differ from others': counts that are not the official
ones, listed files that are not there, files that are no images, harmful copies (`check_images`).
Notes are what is worth knowing and changes nothing: images that no list names, other files,
harmless copies. A set whose counts are the official ones and whose files are all images was
published with whatever copies it holds, so there they are notes, harmful or not.

Memory: the manifest, its paths once more, and what `check_images` needs.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.console import Reporter
from pipelines.datasets.check_files import Files, find_files
from pipelines.datasets.check_images import find_copies, name_first, open_images, plural
from pipelines.datasets.contract import Count, Variant
from pipelines.datasets.manifest import SPLITS
from pipelines.datasets.reader import find_dataset, read_dataset

WHOLE = "all"
"""Scope of the figures that are of no split."""
WORDS = {
    "images": ("image", "images"),
    "identities": ("identity", "identities"),
    "junk": ("junk image", "junk images"),
    "distractors": ("distractor", "distractors"),
    "cameras": ("camera", "cameras"),
}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number of things."""

    found: int
    """How many lie there."""
    official: int | None
    """How many there should be, None where nothing is published."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `check_dataset` found."""

    dataset: str
    """`NAME` or `NAME:VARIANT`."""
    root: str
    counts: Mapping[str, Mapping[str, Figure]]
    """By split, or `all`, and by what is counted: images, identities, junk, distractors,
    cameras."""
    problems: tuple[str, ...]
    """What is wrong, a line each."""
    notes: tuple[str, ...]
    """What else there is to know, a line each."""

    @property
    def ok(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Plain values under the names of the fields, and `ok`."""
        return {**asdict(self), "ok": self.ok}


def check_dataset(name: str, root: str, reporter: Reporter, *, with_images: bool = True) -> Report:
    """Count what lies at `root` against the official figures of the dataset `NAME` or
    `NAME:VARIANT`, and look for what is missing, extra, unreadable or there more than once.

    Without `with_images` no image is opened, and neither damage nor copies are looked for. Images
    that a table lists by URIs are counted and not looked at. Raises `UserError` where the dataset
    cannot be read as its layout says.
    """
    dataset, variant_name = find_dataset(name)
    variant = dataset.variants[variant_name]
    manifest = read_dataset(name, root)
    elsewhere = pc.match_substring(manifest["uri"], "://")
    remote = manifest.filter(elsewhere)
    files = find_files(manifest.filter(pc.invert(elsewhere)))
    counts = count_images(pa.concat_tables([files.present, remote]), variant)

    problems = _count_problems(counts) + _missing(files.missing)
    notes = _file_notes(files, len(remote))
    if with_images:
        opened = open_images(files.present, reporter)
        problems += _unreadable(opened)
        as_published = bool(variant.counts) and not problems
        for copies in find_copies(opened):
            (problems if copies.harmful and not as_published else notes).append(copies.text)
    else:
        notes.append("images were not opened: damage and copies were not looked for")
    return Report(
        dataset=name, root=root, counts=counts, problems=tuple(problems), notes=tuple(notes)
    )


def count_images(manifest: pa.Table, variant: Variant) -> dict[str, dict[str, Figure]]:
    """What the rows hold beside what is official, as in `Report.counts`."""
    counts: dict[str, dict[str, Figure]] = {}
    for split in SPLITS:
        rows = manifest.filter(pc.equal(manifest["split"], split))
        people = rows["identity"].filter(pc.equal(rows["role"], "normal"))
        official = variant.counts.get(split, Count())
        counts[split] = {
            "images": Figure(found=len(rows), official=official.images),
            "identities": Figure(
                found=pc.count_distinct(people).as_py(), official=official.identities
            ),
        }
    for name, role, number in (
        ("junk", "junk", variant.junk),
        ("distractors", "distractor", variant.distractors),
    ):
        in_role = pc.and_(pc.equal(manifest["split"], "gallery"), pc.equal(manifest["role"], role))
        counts["gallery"][name] = Figure(found=pc.sum(in_role).as_py() or 0, official=number)
    cameras = pc.count_distinct(manifest["camera"], mode="only_valid").as_py()
    counts[WHOLE] = {"cameras": Figure(found=cameras, official=variant.cameras)}
    return counts


def _count_problems(counts: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    problems = []
    for scope, figures in counts.items():
        place = "" if scope == WHOLE else f"{scope}: "
        for what, figure in figures.items():
            if figure.official is None or figure.found == figure.official:
                continue
            lacking = figure.official - figure.found
            problems.append(
                f"{place}{plural(figure.found, *WORDS[what])}, official {figure.official:,}: "
                + (f"{lacking:,} missing" if lacking > 0 else f"{-lacking:,} too many")
            )
    return problems


def _missing(missing: pa.Table) -> list[str]:
    if len(missing) == 0:
        return []
    names = name_first((key.as_py() for key in missing["key"]), len(missing))
    return [f"{plural(len(missing), 'listed file')} not there: {names}"]


def _unreadable(opened: pa.Table) -> list[str]:
    bad = opened.filter(pc.is_valid(opened["reason"]))
    if len(bad) == 0:
        return []
    rows = zip(bad["key"], bad["reason"], strict=True)
    said = (f"{key.as_py()} ({reason.as_py()})" for key, reason in rows)
    return [f"{plural(len(bad), 'file')} cannot be used as images: {name_first(said, len(bad))}"]


def _file_notes(files: Files, remote: int) -> list[str]:
    notes = []
    if len(files.extra):
        names = name_first((path.as_py() for path in files.extra), len(files.extra))
        notes.append(f"{plural(len(files.extra), 'extra image')} that nothing lists: {names}")
    if files.others:
        notes.append(f"{plural(files.others, 'other file')} beside the images, passed over")
    if remote:
        notes.append(f"{plural(remote, 'image')} listed by URIs, not looked at")
    return notes
