"""Embeddings in, retrieval figures with their protocol out.

A figure without its protocol says nothing: the result names the rules, the AP formulas, how many
queries were used and why the others were not, and the embeddings it was computed from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.retrieval.description import as_protocol
from pipelines.retrieval.features import Embeddings
from pipelines.retrieval.figures import (
    averages,
    by_camera_pair,
    by_domain,
    cmc_percent,
    confidence,
    per_query_table,
    shares,
)
from pipelines.retrieval.metrics import SortedRanks
from pipelines.retrieval.open_set import suggest_threshold, true_rates
from pipelines.retrieval.protocol import find_protocol
from pipelines.retrieval.ranked_lists import RankedQuery, ranked_lists
from pipelines.retrieval.ranking import Ranking, Task, rank_all
from pipelines.retrieval.rounding import ExactScores
from pipelines.retrieval.setting import Setting, settings_of
from pipelines.retrieval.settings import Provenance, Settings

Ranker = Callable[[Task], tuple[ExactScores, Ranking]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Figures of one set of embeddings under one protocol."""

    metrics: dict[str, float]
    """mAP, mAP_trapezoid, mINP, R1, R5, R10, R20 and those of the protocol, in percent, not
    rounded; means over the draws."""
    protocol: dict[str, Any]
    """What the figures mean: rules, AP formulas, queries used and dropped, flip, re-ranking."""
    cmc: tuple[float, ...]
    """[50] CMC in percent at rank 1, 2, ..."""
    intervals: dict[str, list[float]]
    """[lowest, highest] of each metric at 95 %, by resampling the queries of the first draw."""
    spread: dict[str, float]
    """Standard deviation of each metric over the draws; empty where there is one draw."""
    verification: dict[str, Any]
    """True rates at false alarm rates, the curve, and a threshold, see `open_set`; first draw."""
    by_camera: list[dict[str, Any]]
    """Figures of each pair of cameras; empty where cameras are not known; first draw."""
    by_domain: dict[str, dict[str, float]]
    """Figures of the queries of each domain, where there are several; first draw."""
    per_query: pa.Table
    """[Q] of the used queries of the first draw: key, ap, ap_trapezoid, inp, matches,
    first_hit_rank (from 1)."""
    lists: list[RankedQuery]
    """What a few queries of the first draw found."""


@dataclass(frozen=True, kw_only=True)
class _Draw:
    setting: Setting
    task: Task
    score: ExactScores
    ranking: Ranking
    per_query: pa.Table
    shares: dict[str, np.ndarray]


def evaluate(
    embeddings: Embeddings,
    how: Settings | None = None,
    *,
    lists: pa.Table | None = None,
    provenance: Provenance | None = None,
    rank: Ranker | None = None,
) -> Evaluation:
    """Rank the gallery for every query and average.

    Args:
        embeddings: rows of both splits; of parts of vectors, see `features.chosen_parts`.
        how: protocol and options.
        lists: right answers of a protocol by lists, see `relevance.judge`.
        provenance: what is known of the embeddings.
        rank: counts the ranks; by default in this process.

    Memory: beside the embeddings a tile of scores, and some 80 bytes a (query, right answer) pair.

    Raises:
        UserError: a split is not there, or no query has a right answer (with the cause).
    """
    how, origin = how or Settings(), provenance or Provenance()
    draws = (
        _take(
            embeddings, setting, how, rank or (lambda task: rank_all(task, memory_mb=how.memory_mb))
        )
        for setting in settings_of(embeddings.rows, how, lists=lists)
    )
    first = next(draws)
    found = [(first.shares, first.per_query)] + [(draw.shares, draw.per_query) for draw in draws]
    figures = [averages(one) for one, _ in found]
    domains = first.setting.queries["domain"]
    return Evaluation(
        metrics={name: float(np.mean([one[name] for one in figures])) for name in figures[0]},
        protocol=as_protocol(embeddings, first.setting, how, origin, draws=len(found)),
        cmc=tuple(np.mean([cmc_percent(one) for _, one in found], axis=0).tolist()),
        intervals=confidence(first.shares, resamples=how.resamples, seed=how.seed),
        spread={name: float(np.std([one[name] for one in figures])) for name in figures[0]}
        if len(found) > 1
        else {},
        verification=_verification(first),
        by_camera=_by_camera(first),
        by_domain=by_domain(domains, first.shares) if len(pc.unique(domains)) > 1 else {},
        per_query=first.per_query,
        lists=_lists(first, how.shown) if how.shown else [],
    )


def _take(embeddings: Embeddings, setting: Setting, how: Settings, rank: Ranker) -> _Draw:
    rules = find_protocol(how.protocol)
    task = setting.task(embeddings, how)
    score_P, ranking = rank(task)
    ranks = SortedRanks.of(task.good, score_P, ranking.before)
    per_query = per_query_table(setting.queries["key"], ranks, rules)
    return _Draw(
        setting=setting,
        task=task,
        score=score_P,
        ranking=ranking,
        per_query=per_query,
        shares=shares(per_query, rules, len(setting.gallery)),
    )


def _lists(draw: _Draw, count: int) -> list[RankedQuery]:
    setting = draw.setting
    return ranked_lists(draw.task, setting.queries, setting.gallery, draw.per_query, count=count)


def _verification(draw: _Draw) -> dict[str, Any]:
    best_Q = np.maximum.reduceat(draw.score, draw.task.good.start[:-1])
    rates = true_rates(draw.score, draw.ranking.wrong)
    right_first_Q = draw.per_query["first_hit_rank"].to_numpy() == 1
    threshold = suggest_threshold(best_Q, draw.ranking.best_wrong, right_first_Q)
    return {**rates, "open_set": threshold}


def _by_camera(draw: _Draw) -> list[dict[str, Any]]:
    if draw.ranking.camera_before is None:
        return []
    return by_camera_pair(
        draw.setting.queries["camera"],
        draw.setting.gallery["camera"],
        draw.task.good,
        draw.score,
        draw.ranking.camera_before,
    )
