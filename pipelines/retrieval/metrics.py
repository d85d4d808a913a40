"""CMC, average precision and mINP from the ranks of the right answers.

Every function takes 0-based ranks r_0 < r_1 < ... of the G right answers of one query, the removed
rows not counted, and returns a share between 0 and 1.

Two formulas of average precision are in use, and they are not comparable:

- step: the mean of the precision at each right answer (torchreid, fast-reid, TransReID);
- trapezoid: the mean of the precision at and just before each right answer (the original tool of
  Market-1501, from the Oxford buildings benchmark; also used by LEViT). Never above step.

mINP: Ye et al., "Deep Learning for Person Re-identification: A Survey and Outlook", TPAMI 2021.
"""

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def average_precision_step(ranks: Rows) -> float:
    """(1/G) sum_i (i + 1) / (r_i + 1)."""
    return float(np.mean(_precision_at_hits(ranks)))


def average_precision_trapezoid(ranks: Rows) -> float:
    """(1/G) sum_i (before_i + (i + 1) / (r_i + 1)) / 2, before_i = i / r_i, or 1 at rank 0."""
    hits = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, hits / np.maximum(ranks, 1))
    return float(np.mean((before + _precision_at_hits(ranks)) / 2))


def inverse_negative_penalty(ranks: Rows) -> float:
    """G / (r_last + 1): the share of right answers down to the hardest one."""
    return float(len(ranks) / (ranks[-1] + 1))


def cmc_curve(first_ranks_Q: Rows, length: int) -> npt.NDArray[np.float64]:
    """[length] Share of the queries whose first right answer is among the first 1, 2, ... rows."""
    counts = np.bincount(first_ranks_Q[first_ranks_Q < length], minlength=length)
    return np.cumsum(counts) / len(first_ranks_Q)


def _precision_at_hits(ranks: Rows) -> npt.NDArray[np.float64]:
    return np.arange(1, len(ranks) + 1) / (ranks + 1)
