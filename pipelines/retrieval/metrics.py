"""CMC, average precision and mINP from the ranks of the right answers.

Every function takes the 0-based ranks of the right answers of all queries, ascending inside a
query, the removed rows not counted, and returns one share between 0 and 1 a query.

Two formulas of average precision are in use, and they are not comparable. With r_0 < r_1 < ... the
ranks of the G right answers of one query:

- step: (1/G) sum_i (i + 1) / (r_i + 1), the mean of the precision at each right answer (torchreid,
  fast-reid, TransReID);
- trapezoid: (1/G) sum_i (i / r_i + (i + 1) / (r_i + 1)) / 2 with 1 for i / r_i at rank 0, the mean
  of the precision just before and at each right answer (the original tool of Market-1501, from the
  Oxford buildings benchmark; also LEViT, University-1652, VeRi-776). Never above step.

mINP: Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", TPAMI 2021.

Shapes: Q queries, P right answers of all queries.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.retrieval.pairs import Pairs, Rows

Shares = npt.NDArray[np.float64]
TOP = 10


@dataclass(frozen=True)
class SortedRanks:
    """Ranks of right answers, grouped by query; every query has one."""

    start: Rows
    """[Q + 1] `rank[start[q]:start[q + 1]]` belong to query q."""
    rank: Rows
    """[P] 0-based, ascending inside a query."""

    @classmethod
    def of(cls, good: Pairs, score_P: npt.NDArray[np.float64], before_P: Rows) -> "SortedRanks":
        """From scores of right answers and the wrong rows before each, in the order of the pairs:
        right answers of a query precede one another by score, then by row."""
        order_P = np.lexsort((good.row, -score_P, good.query))
        ahead_P = np.arange(len(good)) - np.repeat(good.start[:-1], good.counts)
        return cls(good.start, before_P[order_P] + ahead_P)

    @property
    def first(self) -> Rows:
        """[Q] rank of the first right answer."""
        return self.rank[self.start[:-1]]

    @property
    def counts(self) -> Rows:
        """[Q] right answers."""
        return np.diff(self.start)

    @property
    def hits_before(self) -> Rows:
        """[P] right answers before this one."""
        return np.arange(len(self.rank)) - np.repeat(self.start[:-1], self.counts)

    def mean(self, value_P: npt.NDArray[np.float64]) -> Shares:
        """[Q] means over a query's right answers."""
        return np.add.reduceat(value_P, self.start[:-1]) / self.counts


def average_precision_step(ranks: SortedRanks) -> Shares:
    """[Q] (1/G) sum_i (i + 1) / (r_i + 1)."""
    return ranks.mean(_precision_at_hits(ranks))


def average_precision_trapezoid(ranks: SortedRanks) -> Shares:
    """[Q] (1/G) sum_i (before_i + (i + 1) / (r_i + 1)) / 2, before_i = i / r_i, or 1 at rank 0."""
    before_P = np.where(ranks.rank == 0, 1.0, ranks.hits_before / np.maximum(ranks.rank, 1))
    return ranks.mean((before_P + _precision_at_hits(ranks)) / 2)


def average_precision_top_ten(ranks: SortedRanks) -> Shares:
    """[Q] mean precision at the right answers among the first ten, divided by how many there are
    and not by G; 0 where there is none."""
    shown_P = ranks.rank < TOP
    begin_Q = ranks.start[:-1]
    found_Q = np.add.reduceat(shown_P, begin_Q, dtype=np.int64)
    sum_Q = np.add.reduceat(np.where(shown_P, _precision_at_hits(ranks), 0.0), begin_Q)
    return sum_Q / np.maximum(found_Q, 1)


def inverse_negative_penalty(ranks: SortedRanks) -> Shares:
    """[Q] G / (r_last + 1): the share of right answers down to the hardest one."""
    return ranks.counts / (ranks.rank[ranks.start[1:] - 1] + 1)


def cmc_curve(first_Q: Rows, length: int) -> Shares:
    """[length] share of the queries whose first right answer is among the first 1, 2, ... rows."""
    counts = np.bincount(first_Q[first_Q < length], minlength=length)
    return np.cumsum(counts) / len(first_Q)


def _precision_at_hits(ranks: SortedRanks) -> npt.NDArray[np.float64]:
    return (ranks.hits_before + 1) / (ranks.rank + 1)
