"""Which queries a report shows, and what each of them found.

The lists follow the evaluation's protocol: junk and the rows taken out for a query do not appear,
so that what a person sees is what the figures count.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.retrieval import EmbeddingSet, top_matches
from pipelines.retrieval.evaluation import prepare


@dataclass(frozen=True, kw_only=True)
class RankedHit:
    """A gallery row in a list."""

    key: str
    uri: str | None
    identity: str | None
    camera: str | None
    score: float
    """Cosine."""
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


def choose_queries(per_query: pa.Table, count: int = 9) -> list[tuple[str, int]]:
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


def ranked_queries(
    embeddings: EmbeddingSet,
    per_query: pa.Table,
    *,
    protocol: str,
    count: int = 9,
    top_k: int = 10,
) -> list[RankedQuery]:
    """The lists of a choice of queries.

    Args:
        embeddings: the set that was evaluated.
        per_query: `Evaluation.per_query` of it.
        protocol: the evaluation's.
        count: queries to show.
        top_k: rows a list.

    Memory: one score a gallery row beside the embeddings.
    """
    task = prepare(embeddings, protocol=protocol)
    number_of = {key: i for i, key in enumerate(task.queries.rows["key"].to_pylist())}
    chosen = choose_queries(per_query, count)
    numbers = [number_of[per_query["key"][row].as_py()] for _, row in chosen]
    found = top_matches(
        task.queries.vectors, task.gallery.vectors, task.relevance.judge, numbers, top_k=top_k
    )
    lists = []
    for (choice, row), number, (positions, scores) in zip(chosen, numbers, found, strict=True):
        query = task.queries.rows.slice(number, 1).to_pylist()[0]
        good = set(task.relevance.judge(number).good.tolist())
        hits = task.gallery.rows.take(positions).to_pylist()
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
