"""The judgement between queries and gallery: right answers, rows taken out, queries dropped.

Shapes: Q queries, G gallery rows, P pairs.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError
from pipelines.retrieval.pairs import Pairs, Rows, expand
from pipelines.retrieval.protocol import Protocol, find_protocol

NOT_A_NORMAL_ROW = "not_a_normal_row"
IDENTITY_UNKNOWN = "identity_unknown"
IDENTITY_NOT_IN_GALLERY = "identity_not_in_gallery"
ONLY_SAME_CAMERA = "only_same_camera"
ONLY_ITSELF = "only_itself"
NOT_LISTED = "not_listed"


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the queries ask of the gallery."""

    good: Pairs
    """Right answers."""
    removed: Pairs
    """Rows that are taken out of a query's ranking."""
    dropped: Counter[str]
    """Queries that cannot be evaluated, by reason."""
    used: Rows
    """[Q] numbers of the queries in the table that was judged; the pairs count only these."""


def judge(
    queries: pa.Table, gallery: pa.Table, *, protocol: str, lists: pa.Table | None = None
) -> Judgement:
    """Judge `queries` [Q] on `gallery` [G]; both have key, identity, camera and role.

    `lists` is for protocols by lists: columns query, good, junk, see
    `pipelines.datasets.veri776.read_judgements`.

    Memory: about 65 bytes a pair of a query and a gallery row of its identity.

    Raises:
        UserError: an unknown protocol, no query with a right answer (with the cause), or lists
            where the protocol needs none or none where it does.
    """
    rules = find_protocol(protocol)
    if rules.lists != (lists is not None):
        raise UserError(
            f"protocol {protocol} {'needs' if rules.lists else 'takes no'} lists of right answers"
        )
    sides = (
        _listed(queries, gallery, lists) if lists is not None else _by_rule(queries, gallery, rules)
    )
    reasons = sides.reasons
    reasons[~np.asarray(pc.equal(queries["role"], "normal"))] = NOT_A_NORMAL_ROW
    used_Q = reasons == ""
    dropped = Counter(reasons[~used_Q].tolist())
    if not used_Q.any():
        raise _no_usable_query(queries, gallery, dropped)
    return Judgement(
        good=_of_queries(sides.good, used_Q),
        removed=_of_queries(sides.removed, used_Q),
        dropped=dropped,
        used=np.flatnonzero(used_Q),
    )


@dataclass(frozen=True, kw_only=True)
class _Sides:
    good: Pairs
    removed: Pairs
    reasons: np.ndarray
    """[Q] why a query has no right answer, or an empty text."""


def _by_rule(queries: pa.Table, gallery: pa.Table, rules: Protocol) -> _Sides:
    count = len(queries)
    identity_Q, identity_G = _joint_codes(queries["identity"], gallery["identity"])
    camera_Q, camera_G = _joint_codes(queries["camera"], gallery["camera"])
    never_G = np.asarray(pc.not_equal(gallery["role"], "normal"))
    identity_G = np.where(never_G, -1, identity_G)
    order_G = np.argsort(identity_G, kind="stable")
    sorted_G = identity_G[order_G]
    low_Q = np.searchsorted(sorted_G, identity_Q, side="left")
    high_Q = np.searchsorted(sorted_G, identity_Q, side="right")
    low_Q = np.where(identity_Q < 0, high_Q, low_Q)
    query_P, place_P = expand(low_Q, high_Q)
    row_P = order_G[place_P]
    own_Q = np.full(count, -1, dtype=np.int64)
    if not rules.keeps_itself:
        own_Q = _positions(queries["key"], gallery["key"])
    out_P = row_P == own_Q[query_P]
    if rules.excludes_same_camera:
        out_P |= (camera_Q[query_P] >= 0) & (camera_G[row_P] == camera_Q[query_P])
    good = Pairs.of(query_P[~out_P], row_P[~out_P], queries=count)
    # own key under another identity (mislabelled twice): still not an answer to itself
    itself_Q = np.flatnonzero(own_Q >= 0)
    removed = Pairs.of(
        np.r_[query_P[out_P], itself_Q], np.r_[row_P[out_P], own_Q[itself_Q]], queries=count
    )
    found_Q = high_Q - low_Q
    own_only_Q = (found_Q == 1) & (np.bincount(query_P, row_P == own_Q[query_P], count) > 0)
    reasons = np.select(
        [good.counts > 0, identity_Q < 0, found_Q == 0, own_only_Q],
        ["", IDENTITY_UNKNOWN, IDENTITY_NOT_IN_GALLERY, ONLY_ITSELF],
        ONLY_SAME_CAMERA,
    ).astype(object)
    return _Sides(good=good, removed=removed, reasons=reasons)


def _listed(queries: pa.Table, gallery: pa.Table, lists: pa.Table) -> _Sides:
    count = len(queries)
    place = pc.index_in(queries["key"], value_set=lists["query"].combine_chunks())
    listed = lists.take(place)
    own_Q = _positions(queries["key"], gallery["key"])
    itself_Q = np.flatnonzero(own_Q >= 0)
    good = _pairs_of_lists(listed["good"], gallery["key"], count)
    junk = _pairs_of_lists(listed["junk"], gallery["key"], count)
    removed = Pairs.of(np.r_[junk.query, itself_Q], np.r_[junk.row, own_Q[itself_Q]], queries=count)
    kept_P = ~_contains(removed, good)
    good = Pairs.of(good.query[kept_P], good.row[kept_P], queries=count)
    missing_Q = np.asarray(place.is_null())
    reasons = np.select(
        [good.counts > 0, missing_Q], ["", NOT_LISTED], IDENTITY_NOT_IN_GALLERY
    ).astype(object)
    return _Sides(good=good, removed=removed, reasons=reasons)


def _pairs_of_lists(lists: pa.ChunkedArray, keys: pa.ChunkedArray, count: int) -> Pairs:
    values = lists.combine_chunks()
    query_P = np.asarray(pc.list_parent_indices(values), dtype=np.int64)
    row_P = _positions(pc.list_flatten(values), keys)
    return Pairs.of(query_P[row_P >= 0], row_P[row_P >= 0], queries=count)


def _contains(pairs: Pairs, others: Pairs) -> np.ndarray:
    """bool [P] of `others`: the pair is in `pairs`."""
    width = 1 + max(pairs.row.max(initial=0), others.row.max(initial=0))
    return np.isin(others.query * width + others.row, pairs.query * width + pairs.row)


def _of_queries(pairs: Pairs, used_Q: np.ndarray) -> Pairs:
    number_Q = np.cumsum(used_Q) - 1
    query_P = pairs.query
    kept_P = used_Q[query_P]
    start = np.searchsorted(number_Q[query_P[kept_P]], np.arange(int(used_Q.sum()) + 1))
    return Pairs(start=start, row=pairs.row[kept_P])


def _positions(keys: pa.Array | pa.ChunkedArray, among: pa.ChunkedArray) -> Rows:
    found = pc.index_in(keys, value_set=among.combine_chunks()).fill_null(-1)
    return np.asarray(found, dtype=np.int64)


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
        named_rows = gallery.filter(pc.equal(gallery["role"], "normal"))
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
        (NOT_LISTED, "are not in the lists: give the lists of this dataset"),
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
