"""Embeddings in, retrieval figures with their protocol out.

A figure without its protocol says nothing: the result names the rules, the AP formulas, how many
queries were used and why the others were not, and the embeddings it was computed from.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError
from pipelines.retrieval.embeddings import EmbeddingSet
from pipelines.retrieval.metrics import (
    Rows,
    average_precision_step,
    average_precision_trapezoid,
    cmc_curve,
    inverse_negative_penalty,
)
from pipelines.retrieval.protocol import Relevance, relevance, usable_queries
from pipelines.retrieval.ranking import DEFAULT_MEMORY_MB, rank_matches

CMC_LENGTH = 50
CMC_RANKS = (1, 5, 10, 20)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one set of embeddings under one protocol."""

    metrics: dict[str, float]
    """mAP, mAP_trapezoid, mINP, R1, R5, R10, R20 in percent, not rounded."""
    protocol: dict[str, Any]
    """What the figures mean: rules, AP formulas, queries used and dropped, flip, re-ranking."""
    cmc: tuple[float, ...]
    """[50] CMC in percent at rank 1, 2, ..."""
    per_query: pa.Table
    """[Q] of the used queries: key, ap, ap_trapezoid, inp, matches, first_hit_rank (from 1)."""


@dataclass(frozen=True, kw_only=True)
class RankingTask:
    """The queries that count, the gallery without junk, and the judgement between them."""

    queries: EmbeddingSet
    gallery: EmbeddingSet
    relevance: Relevance
    dropped: Counter[str]
    junk_removed: int


def evaluate(
    embeddings: EmbeddingSet,
    *,
    protocol: str = "market",
    query_split: str = "query",
    gallery_split: str = "gallery",
    flip: bool | None = None,
    junk_left_out: int = 0,
    memory_mb: int = DEFAULT_MEMORY_MB,
) -> Evaluation:
    """Rank the gallery for every query and average.

    Args:
        embeddings: rows of both splits.
        protocol: `market` or `any_camera`, see `pipelines.retrieval.protocol`.
        flip: whether the embeddings hold the sum over the image and its mirror image; only passed
            on into the protocol. None: not known.
        junk_left_out: junk images that were never embedded; counted with the junk taken out here.
        memory_mb: limit of the working memory beside the embeddings, see `rank_matches`.

    Raises:
        UserError: a split is not there, or no query has a right answer (with the cause).
    """
    task = prepare(
        embeddings, protocol=protocol, query_split=query_split, gallery_split=gallery_split
    )
    ranks = rank_matches(
        task.queries.vectors,
        task.gallery.vectors,
        task.relevance.judge,
        memory_mb=memory_mb,
    )
    per_query = _per_query(task.queries.rows["key"], ranks)
    cmc = 100 * cmc_curve(np.array([r[0] for r in ranks]), CMC_LENGTH)
    metrics = {
        name: 100 * float(np.mean(per_query[column].to_numpy()))
        for name, column in (("mAP", "ap"), ("mAP_trapezoid", "ap_trapezoid"), ("mINP", "inp"))
    }
    metrics |= {f"R{rank}": float(cmc[rank - 1]) for rank in CMC_RANKS}
    return Evaluation(
        metrics=metrics,
        protocol=_describe(embeddings, task, protocol, flip, junk_left_out),
        cmc=tuple(cmc.tolist()),
        per_query=per_query,
    )


def prepare(
    embeddings: EmbeddingSet,
    *,
    protocol: str = "market",
    query_split: str = "query",
    gallery_split: str = "gallery",
) -> RankingTask:
    """Take out the junk and the queries without a right answer; see `evaluate`."""
    queries, all_gallery = embeddings.split(query_split), embeddings.split(gallery_split)
    gallery = all_gallery.take(np.asarray(pc.not_equal(all_gallery.rows["role"], "junk")))
    if not len(gallery):
        raise UserError(f"all {len(all_gallery)} rows of split {gallery_split} are junk")
    used_Q, dropped = usable_queries(queries.rows, gallery.rows, protocol=protocol)
    used = queries.take(used_Q)
    return RankingTask(
        queries=used,
        gallery=gallery,
        relevance=relevance(used.rows, gallery.rows, protocol=protocol),
        dropped=dropped,
        junk_removed=len(all_gallery) - len(gallery),
    )


def describe_protocol(protocol: Mapping[str, Any]) -> str:
    """`Evaluation.protocol` as one line for people."""
    dropped = protocol["queries_dropped"]
    reasons = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in dropped.items())
    flip = {True: "flip", False: "no flip", None: "flip unknown"}[protocol["flip"]]
    return "; ".join(
        [
            f"{protocol['name']}, {protocol['distance']}",
            ", ".join(f"{name} by {formula} AP" for name, formula in protocol["ap"].items()),
            f"{protocol['queries_used']:,} queries used, {sum(dropped.values()):,} dropped"
            + (f" ({reasons})" if reasons else ""),
            f"gallery {protocol['gallery_size']:,} with {protocol['distractors']:,} distractors, "
            f"{protocol['junk_removed']:,} junk taken out",
            flip,
            "re-ranking" if protocol["rerank"] else "no re-ranking",
            f"embeddings {protocol['embeddings_sha256'][:12]}",
        ]
    )


def _per_query(keys: pa.ChunkedArray, ranks: list[Rows]) -> pa.Table:
    return pa.table(
        {
            "key": keys,
            "ap": [average_precision_step(r) for r in ranks],
            "ap_trapezoid": [average_precision_trapezoid(r) for r in ranks],
            "inp": [inverse_negative_penalty(r) for r in ranks],
            "matches": [len(r) for r in ranks],
            "first_hit_rank": [int(r[0]) + 1 for r in ranks],
        }
    )


def _describe(
    embeddings: EmbeddingSet,
    task: RankingTask,
    protocol: str,
    flip: bool | None,
    junk_left_out: int,
) -> dict[str, Any]:
    distractors = pc.sum(pc.equal(task.gallery.rows["role"], "distractor")).as_py()
    return {
        "name": protocol,
        "ap": {"mAP": "step", "mAP_trapezoid": "trapezoid"},
        "distance": "cosine",
        "queries_used": len(task.queries),
        "queries_dropped": dict(sorted(task.dropped.items())),
        "gallery_size": len(task.gallery),
        "distractors": int(distractors),
        "junk_removed": task.junk_removed + junk_left_out,
        "flip": flip,
        "rerank": False,
        "embedding_dim": embeddings.dim,
        "embeddings_sha256": embeddings.fingerprint,
    }
