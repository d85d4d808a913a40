"""Which gallery rows count for a query, by the name of a protocol.

`market` (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015): rows marked
junk are taken out for everybody; rows of the query's own identity under the query's own camera are
taken out for this query; distractors stay and never match. An unknown camera equals no camera.

`any_camera`: for data without cameras. Every row of the identity is a match.

`vehicleid` (Liu et al., "Deep Relative Distance Learning", CVPR 2016): of every test identity one
image, drawn at random, is the gallery and the others are queries; drawn ten times. Distractors are
in every gallery.

`leave_one_out` (Cars196, CUB-200): every test image asks for all the others; an image that stands
in both splits is there once.

`university` (Zheng et al., "University-1652", ACM MM 2020): any camera; the recall at one percent
of the gallery is among the figures.

`latf_legacy` (the official codes of LA-Transformer and LA-TF++): nothing is taken out, not even
junk or the query's own copy, and the average precision looks at ten answers only.

`veri_lists` (Liu et al., "A Deep Learning-Based Approach to Progressive Vehicle Re-identification
for Urban Surveillance", ECCV 2016): right answers and rows to leave out are those of the owners'
lists, query by query.

Under all but `latf_legacy` the very row of the query's own key is taken out: an image does not find
itself.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from pipelines.errors import UserError

Sides: TypeAlias = Literal["split", "drawn", "all"]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The rules behind a name."""

    excludes_same_camera: bool = False
    """Rows of the query's identity under the query's camera are taken out."""
    keeps_junk: bool = False
    """Rows marked junk stay in the gallery; they never match."""
    keeps_itself: bool = False
    """A gallery row of the query's own key stays."""
    sides: Sides = "split"
    """`split`: queries and gallery by their split; `drawn`: one image of each identity is drawn to
    be the gallery, the others are queries; `all`: every image is on both sides."""
    ranks: tuple[int, ...] = (1, 5, 10, 20)
    """Ranks whose CMC (or recall) is among the figures."""
    percent_rank: bool = False
    """The recall at one percent of the gallery is among the figures."""
    top_ten: bool = False
    """The average precision over the first ten answers is among the figures."""
    clusters: bool = False
    """NMI of a k-means clustering is among the figures."""
    lists: bool = False
    """Right answers and rows to leave out come from lists."""


PROTOCOLS = {
    "market": Protocol(excludes_same_camera=True),
    "any_camera": Protocol(),
    "vehicleid": Protocol(sides="drawn"),
    "leave_one_out": Protocol(sides="all", ranks=(1, 2, 4, 5, 8, 10, 20), clusters=True),
    "university": Protocol(percent_rank=True),
    "latf_legacy": Protocol(keeps_junk=True, keeps_itself=True, top_ten=True),
    "veri_lists": Protocol(lists=True),
}


def find_protocol(name: str) -> Protocol:
    """The rules of this name; a `UserError` where there is none."""
    if name not in PROTOCOLS:
        names = list(PROTOCOLS)
        raise UserError(
            f"evaluate.protocol={name} is unknown: use {', '.join(names[:-1])} or {names[-1]}"
        )
    return PROTOCOLS[name]
