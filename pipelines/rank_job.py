"""Counting ranks with Ray: the gallery is dealt out, the counts add up.

Every task takes a run of gallery rows and counts, for all queries, how many of its wrong rows come
before each right answer. Ranks do not depend on how the rows are dealt: any number of tasks gives
the same figures as none.

Memory: queries and judgement once a node; the part's vectors (or one block of them) a task.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import ray

from pipelines.ray_session import ray_session
from pipelines.retrieval.ranking import (
    DEFAULT_MEMORY_MB,
    Ranking,
    Task,
    count_above_floor,
    count_ranks,
    score_pairs,
)
from pipelines.retrieval.rounding import ExactScores
from pipelines.retrieval.scores import Histogram
from pipelines.retrieval.vectors import HeldVectors, VectorSource


@dataclass(frozen=True)
class RankJob:
    """A `Ranker` for `retrieval.evaluate`; needs a connected Ray."""

    workers: int
    memory_mb: int = DEFAULT_MEMORY_MB

    def __call__(self, task: Task) -> tuple[ExactScores, Ranking]:
        """([P] scores, ranking), as `ranking.rank_all`."""
        shared = ray.put(replace(task, gallery=HeldVectors(np.empty((0, 0), dtype=np.float32))))
        parts = [ray.put(part) for part in split_source(task.gallery, self.workers)]
        score_P, sample = np.zeros(len(task.good), dtype=np.float64), Histogram.empty()
        for scores, histogram in ray.get([_score.remote(shared, p, self.memory_mb) for p in parts]):
            score_P += scores
            sample.add(histogram)
        scores = ray.put(score_P)

        def count(floor: float) -> Ranking:
            waiting = [_count.remote(shared, p, scores, floor, self.memory_mb) for p in parts]
            total = Ranking.empty(task, floor)
            for counted in waiting:
                total.add(ray.get(counted))
            return total

        return score_P, count_above_floor(task, sample, count)


def split_source(source: VectorSource, count: int) -> Iterator[VectorSource]:
    """At most `count` runs of rows of about the same length."""
    cuts = np.linspace(0, len(source), min(count, len(source)) + 1).astype(np.int64).tolist()
    for low, high in pairwise(cuts):
        yield source.part(low, high)


@ray.remote(num_cpus=1)
def _score(task: Task, part: VectorSource, memory_mb: int) -> tuple[ExactScores, Histogram]:
    return score_pairs(replace(task, gallery=part), memory_mb=memory_mb)


@ray.remote(num_cpus=1)
def _count(
    task: Task, part: VectorSource, score_P: ExactScores, floor: float, memory_mb: int
) -> Ranking:
    return count_ranks(replace(task, gallery=part), score_P, floor=floor, memory_mb=memory_mb)


@contextmanager
def rank_session(workers: int, *, verbose: bool) -> Iterator[RankJob]:
    """A `RankJob` inside a connected Ray."""
    with ray_session(verbose=verbose):
        yield RankJob(workers)
