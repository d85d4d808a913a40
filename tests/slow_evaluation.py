"""The slow reference of the protocols: whole lists of right and wrong, and figures from them."""

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa

from pipelines.retrieval import EmbeddingSet
from tests.embedding_files import embedding_table, sign_vectors

Rule = Callable[[dict, dict], bool]


def own(query: dict, row: dict) -> bool:
    return query["key"] == row["key"]


def right(query: dict, row: dict) -> bool:
    return query["identity"] is not None and row["identity"] == query["identity"] and normal(row)


def normal(row: dict) -> bool:
    return row["role"] == "normal"


def slow_lists(
    embeddings: EmbeddingSet,
    queries: Iterable[int],
    gallery: Iterable[int],
    *,
    good: Rule,
    out: Rule,
) -> dict[int, list[bool]]:
    """Row number of a query: its whole gallery in order, as right or wrong. Of equal scores the
    wrong row comes first. Queries without a right answer are not there."""
    rows, exact = embeddings.rows.to_pylist(), embeddings.vectors.astype(np.float64)
    gallery = list(gallery)
    lists = {}
    for i in queries:
        kept = [j for j in gallery if not out(rows[i], rows[j])]
        order = sorted(
            (-round(float(exact[i] @ exact[j]), 9), good(rows[i], rows[j])) for j in kept
        )
        if any(is_right for _, is_right in order):
            lists[i] = [is_right for _, is_right in order]
    return lists


def slow_figures(lists: Iterable[list[bool]], ranks: Iterable[int] = (1, 5, 10, 20)) -> dict:
    """mAP, mAP_trapezoid, mINP and R at ranks, in percent."""
    values: dict[str, list[float]] = {}
    for order in lists:
        hits = [place for place, is_right in enumerate(order) if is_right]
        precision = [(i + 1) / (place + 1) for i, place in enumerate(hits)]
        before = [i / place if place else 1 for i, place in enumerate(hits)]
        found = {
            "mAP": sum(precision) / len(hits),
            "mAP_trapezoid": sum(b + p for b, p in zip(before, precision, strict=True))
            / (2 * len(hits)),
            "mINP": len(hits) / (hits[-1] + 1),
            **{f"R{rank}": float(hits[0] < rank) for rank in ranks},
        }
        for name, value in found.items():
            values.setdefault(name, []).append(value)
    return {name: 100 * sum(value) / len(value) for name, value in values.items()}


def pool_of(embeddings: EmbeddingSet, keep: Rule | None = None) -> list[int]:
    return [i for i, row in enumerate(embeddings.rows.to_pylist()) if not keep or keep(row, row)]


def single_images(seed: int, *, identities: int = 15, count: int = 90) -> pa.Table:
    """Test images without cameras, in two splits."""
    rng = np.random.default_rng(seed)
    identity = [f"v{i}" for i in [*range(identities), *rng.integers(0, identities, count)]]
    return embedding_table(
        sign_vectors(rng, len(identity), 16),
        identity=identity,
        split=rng.choice(["query", "gallery"], len(identity)).tolist(),
    )
