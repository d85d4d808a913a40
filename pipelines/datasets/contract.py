"""What a dataset says of itself: layout, official counts, protocol, terms, and how it is read.

A dataset may come in variants (lists, annotations, directions); `NAME:VARIANT` names one, the name
alone means the first. A dataset may also be joined from others (`transfer`); such a one has no
files of its own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

PLAIN = ""
"""Name of the only variant of a dataset that has no others."""


@dataclass(frozen=True, kw_only=True)
class Count:
    """Official figures of a split; None is not published."""

    images: int | None = None
    """Images, junk and distractors among them."""
    identities: int | None = None
    """Identities of the images that are neither junk nor distractors."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to take a dataset."""

    text: str = ""
    """What it is, in one line."""
    counts: Mapping[str, Count] = field(default_factory=dict)
    """Official figures by split: train, query, gallery."""
    cameras: int | None = None
    """Official number of cameras."""
    junk: int | None = None
    """Official number of gallery images marked junk."""
    distractors: int | None = None
    """Official number of gallery images of nobody who is asked for."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One dataset, or one general layout."""

    title: str
    """Its name, for people."""
    layout: str
    """What lies where, in one line."""
    read: Callable[[Path, str], pa.Table] | None
    """(root, variant) -> manifest; None where it is joined from other datasets."""
    source: str = ""
    """The publication."""
    protocol: str = "market"
    """Name of its evaluation protocol, see `pipelines.retrieval.protocol`."""
    protocol_note: str = ""
    """What else there is to know about its figures."""
    terms: str = ""
    """Who may have it and use it."""
    variants: Mapping[str, Variant] = field(default_factory=lambda: {PLAIN: Variant()})
    """By name; the first is the default."""

    @property
    def default(self) -> str:
        """The variant that the dataset's name alone means."""
        return next(iter(self.variants))
