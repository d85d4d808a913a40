"""A few queries and what each of them found, for people to look at.

The lists follow the evaluation's protocol and scores: junk and the rows taken out for a query do
not appear, so that what a person sees is what the figures count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.retrieval.pairs import Rows
from pipelines.retrieval.ranking import Task
from pipelines.retrieval.vectors import Vectors

SHOWN = 12
TOP_K = 10
BLOCK_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class RankedHit:
    """A gallery row in a list."""

    key: str
    uri: str | None
    identity: str | None
    camera: str | None
    score: float
    """What the gallery was ranked by, highest first; the cosine, unless it was re-ranked."""
    correct: bool
    """Whether it is a right answer under the protocol."""


@dataclass(frozen=True, kw_only=True)
class RankedQuery:
    """A query with the first rows that it found."""

    choice: str
    """Why it is shown: best, median or worst."""
    key: str
    uri: str | None
    identity: str
    camera: str | None
    average_precision: float
    """Step formula, between 0 and 1."""
    hits: tuple[RankedHit, ...]


def choose_queries(per_query: pa.Table, count: int = SHOWN) -> list[tuple[str, int]]:
    """Row numbers of the queries with the best, median and worst average precision, in that order.

    A third of `count` each, the median taking the remainder; no query twice; equal ones by row.
    """
    ranked = np.argsort(-per_query["ap"].to_numpy(), kind="stable")
    count = min(count, len(ranked))
    third = count // 3
    middle = count - 2 * third
    start = (len(ranked) - middle) // 2
    parts: Sequence[tuple[str, np.ndarray]] = (
        ("best", ranked[:third]),
        ("median", ranked[start : start + middle]),
        ("worst", ranked[len(ranked) - third :][::-1]),
    )
    return [(choice, int(row)) for choice, rows in parts for row in rows]


def top_rows(task: Task, chosen: Sequence[int], *, top_k: int) -> list[tuple[Rows, Vectors]]:
    """For each chosen query its first K gallery rows [K] and their scores [K], removed ones left
    out; of equal scores wrong rows first, as they are counted, then by row.

    Memory: one score a gallery row and chosen query.
    """
    scores_BG = np.empty((len(chosen), len(task.gallery)), dtype=np.float32)
    for first, rows_WD in task.gallery.blocks(BLOCK_ROWS):
        for b, query in enumerate(chosen):
            out = scores_BG[b : b + 1, first : first + len(rows_WD)]
            task.scorer.tile(query, query + 1, first, rows_WD, out)
    results = []
    for b, query in enumerate(chosen):
        right_G = np.zeros(len(task.gallery), dtype=bool)
        right_G[task.good.rows_of(query)] = True
        order_G = np.lexsort((right_G, -scores_BG[b]))
        kept = order_G[~np.isin(order_G, task.removed.rows_of(query))][:top_k]
        results.append((kept, scores_BG[b, kept]))
    return results


def ranked_lists(
    task: Task,
    queries: pa.Table,
    gallery: pa.Table,
    per_query: pa.Table,
    *,
    count: int = SHOWN,
    top_k: int = TOP_K,
) -> list[RankedQuery]:
    """The lists of a choice of queries.

    Args:
        task: what was ranked.
        queries: [Q] rows of the task's queries.
        gallery: [G] rows of its gallery.
        per_query: [Q] `Evaluation.per_query`.
        count: queries to show.
        top_k: rows a list.
    """
    chosen = choose_queries(per_query, count)
    found = top_rows(task, [row for _, row in chosen], top_k=top_k)
    lists = []
    for (choice, row), (positions, scores) in zip(chosen, found, strict=True):
        query = queries.slice(row, 1).to_pylist()[0]
        good = set(task.good.rows_of(row).tolist())
        hits = gallery.take(positions).to_pylist()
        lists.append(
            RankedQuery(
                choice=choice,
                average_precision=per_query["ap"][row].as_py(),
                **{name: query[name] for name in ("key", "uri", "identity", "camera")},
                hits=tuple(
                    RankedHit(
                        score=float(score),
                        correct=int(position) in good,
                        **{name: hit[name] for name in ("key", "uri", "identity", "camera")},
                    )
                    for position, score, hit in zip(positions, scores, hits, strict=True)
                ),
            )
        )
    return lists
