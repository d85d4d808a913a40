"""(query, gallery row) pairs, grouped by query.

Shapes: Q queries, P pairs.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Rows: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Some gallery rows for every query; 8 bytes a pair and 8 a query."""

    start: Rows
    """[Q + 1] `row[start[q]:start[q + 1]]` belong to query q."""
    row: Rows
    """[P] gallery rows, ascending inside a query."""

    @classmethod
    def of(cls, query_P: Rows, row_P: Rows, *, queries: int) -> "Pairs":
        """From pairs in any order; a pair that stands twice is kept once."""
        order_P = np.lexsort((row_P, query_P))
        query_P, row_P = query_P[order_P], row_P[order_P]
        new_P = np.r_[True, (np.diff(query_P) != 0) | (np.diff(row_P) != 0)][: len(row_P)]
        return cls(start=np.searchsorted(query_P[new_P], np.arange(queries + 1)), row=row_P[new_P])

    def __len__(self) -> int:
        return len(self.row)

    @property
    def counts(self) -> Rows:
        """[Q] rows of each query."""
        return np.diff(self.start)

    @property
    def query(self) -> Rows:
        """[P] the query of each pair."""
        return np.repeat(np.arange(len(self.start) - 1), self.counts)

    def rows_of(self, query: int) -> Rows:
        """The rows of one query."""
        return self.row[self.start[query] : self.start[query + 1]]

    def within(self, low: int, high: int) -> "Pairs":
        """The pairs of the queries low, ..., high - 1, which become 0, 1, ..."""
        first, last = self.start[low], self.start[high]
        return Pairs(start=self.start[low : high + 1] - first, row=self.row[first:last])


def expand(low_Q: Rows, high_Q: Rows) -> tuple[Rows, Rows]:
    """Every number of the ranges low[q], ..., high[q] - 1, and the q it belongs to: two [P]."""
    counts_Q = high_Q - low_Q
    query_P = np.repeat(np.arange(len(low_Q)), counts_Q)
    first_P = np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
    return query_P, np.arange(len(query_P)) - first_P + low_Q[query_P]
