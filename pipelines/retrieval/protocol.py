"""Which gallery rows count for a query.

`market` (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015): rows marked
junk are taken out for everybody; rows of the query's own identity under the query's own camera are
taken out for this query; distractors stay and never match. An unknown camera equals no camera.

`any_camera`: for data without cameras. Every row of the identity is a match.

Under both the very row of the query's own key is taken out: an image does not find itself.

Shapes: Q queries, G gallery rows (after the junk is out).
"""

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError

PROTOCOLS = ("market", "any_camera")

NOT_A_NORMAL_ROW = "not_a_normal_row"
IDENTITY_UNKNOWN = "identity_unknown"
IDENTITY_NOT_IN_GALLERY = "identity_not_in_gallery"
ONLY_SAME_CAMERA = "only_same_camera"
ONLY_ITSELF = "only_itself"

Rows = npt.NDArray[np.int64]


class Judgement(NamedTuple):
    """What one query asks of the gallery; both hold ascending gallery rows."""

    good: Rows
    """Rows that are right answers."""
    removed: Rows
    """Rows that are taken out of this query's ranking."""


@dataclass(frozen=True, kw_only=True)
class Relevance:
    """Answers for every query which gallery rows are good and which are taken out.

    Memory: a few integers a row, none a (query, gallery) pair.
    """

    excludes_same_camera: bool
    query_identity: Rows
    """[Q] identity code; -1 is unknown."""
    query_camera: Rows
    """[Q] camera code; -1 is unknown."""
    query_self: Rows
    """[Q] the gallery row with the query's own key, or -1."""
    gallery_camera: Rows
    """[G] camera code; -1 is unknown."""
    by_identity: Rows
    """[G] gallery rows in the order of their identity code; -1 (never a match) comes first."""
    starts: Rows
    """`by_identity[starts[c]:starts[c + 1]]` are the rows of identity code c."""

    def judge(self, query: int) -> Judgement:
        """The good and the removed gallery rows of one query."""
        rows = self._rows_of_identity(query)
        out = rows == self.query_self[query]
        camera = self.query_camera[query]
        if self.excludes_same_camera and camera >= 0:
            out |= self.gallery_camera[rows] == camera
        # own key under another identity (mislabelled twice): still not an answer to itself
        own = self.query_self[query : query + 1]
        return Judgement(good=rows[~out], removed=np.union1d(rows[out], own[own >= 0]))

    def reason_to_drop(self, query: int) -> str | None:
        """Why the query has no good row, or None if it has one."""
        if self.query_identity[query] < 0:
            return IDENTITY_UNKNOWN
        rows = self._rows_of_identity(query)
        if not len(rows):
            return IDENTITY_NOT_IN_GALLERY
        if (rows == self.query_self[query]).all():
            return ONLY_ITSELF
        return None if len(self.judge(query).good) else ONLY_SAME_CAMERA

    def _rows_of_identity(self, query: int) -> Rows:
        code = self.query_identity[query]
        if code < 0:
            return self.by_identity[:0]
        return self.by_identity[self.starts[code] : self.starts[code + 1]]


def relevance(queries: pa.Table, gallery: pa.Table, *, protocol: str) -> Relevance:
    """Prepare the judgement of `queries` [Q] on `gallery` [G] (no junk rows in it).

    Raises:
        UserError: an unknown protocol.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"evaluate.protocol={protocol} is unknown: use {' or '.join(PROTOCOLS)}")
    query_identity_Q, gallery_identity_G = _joint_codes(queries["identity"], gallery["identity"])
    distractor_G = np.asarray(pc.equal(gallery["role"], "distractor"))
    gallery_identity_G = np.where(distractor_G, -1, gallery_identity_G)
    query_camera_Q, gallery_camera_G = _joint_codes(queries["camera"], gallery["camera"])
    by_identity_G = np.argsort(gallery_identity_G, kind="stable")
    codes = int(max(query_identity_Q.max(initial=-1), gallery_identity_G.max(initial=-1))) + 1
    own = pc.index_in(queries["key"], value_set=gallery["key"]).fill_null(-1)
    return Relevance(
        excludes_same_camera=protocol == "market",
        query_identity=query_identity_Q,
        query_camera=query_camera_Q,
        query_self=np.asarray(own, dtype=np.int64),
        gallery_camera=gallery_camera_G,
        by_identity=by_identity_G,
        starts=np.searchsorted(gallery_identity_G[by_identity_G], np.arange(codes + 1)),
    )


def usable_queries(
    queries: pa.Table, gallery: pa.Table, *, protocol: str
) -> tuple[np.ndarray, Counter[str]]:
    """Which of `queries` [Q] have a right answer in `gallery` [G] (no junk rows in it).

    Returns:
        bool [Q], and how many were dropped for which reason.

    Raises:
        UserError: none has; names the cause.
    """
    judged = relevance(queries, gallery, protocol=protocol)
    normal_Q = np.asarray(pc.equal(queries["role"], "normal"))
    reasons = [
        judged.reason_to_drop(query) if normal else NOT_A_NORMAL_ROW
        for query, normal in enumerate(normal_Q)
    ]
    dropped = Counter(reason for reason in reasons if reason is not None)
    used_Q = np.array([reason is None for reason in reasons], dtype=bool)
    if not used_Q.any():
        raise _no_usable_query(queries, gallery, dropped)
    return used_Q, dropped


def _no_usable_query(queries: pa.Table, gallery: pa.Table, dropped: Counter[str]) -> UserError:
    """The error for a set of queries of which none has a right answer; names the cause."""
    cameras = sorted(set(pc.drop_null(gallery["camera"]).to_pylist()))
    causes = []
    if dropped[ONLY_SAME_CAMERA]:
        where = f"one camera only ({cameras[0]})" if len(cameras) == 1 else "the query's own camera"
        causes.append(
            f"{dropped[ONLY_SAME_CAMERA]} queries find their identity under {where}, which the "
            "market protocol takes out: use evaluate.protocol=any_camera"
        )
    if dropped[IDENTITY_NOT_IN_GALLERY]:
        named_rows = gallery.filter(pc.not_equal(gallery["role"], "distractor"))
        known = set(named_rows["identity"].to_pylist())
        absent = sorted({i for i in queries["identity"].to_pylist() if i and i not in known})
        named = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        causes.append(
            f"{dropped[IDENTITY_NOT_IN_GALLERY]} queries have identities that are not in the "
            f"gallery ({named}): check the splits or the spelling of the identities"
        )
    for reason, advice in (
        (ONLY_ITSELF, "find only themselves: add other images of the identities"),
        (IDENTITY_UNKNOWN, "have no identity: label them"),
        (NOT_A_NORMAL_ROW, "are marked distractor or junk: mark them normal"),
    ):
        if dropped[reason]:
            causes.append(f"{dropped[reason]} queries {advice}")
    return UserError("no query can be evaluated: " + "; ".join(causes))


def _joint_codes(queries: pa.ChunkedArray, gallery: pa.ChunkedArray) -> tuple[Rows, Rows]:
    """One integer a distinct value over both sides, -1 for null."""
    both = pa.chunked_array([*queries.chunks, *gallery.chunks], type=pa.string())
    encoded = both.combine_chunks().dictionary_encode()
    codes = np.asarray(encoded.indices.fill_null(-1), dtype=np.int64)
    return codes[: len(queries)], codes[len(queries) :]
