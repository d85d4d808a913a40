"""The k nearest of every vector, exactly, in memory that does not grow with rows x rows.

Scores are computed in tiles, and each row keeps its k best so far. The worst of them is a bar: a
later score counts only if it lies above, which after a few tiles hardly any does, so that a tile
costs little more than its matrix product. Among the vectors of one set every product serves two
rows, and only half of the tiles are computed.

The order is that of a stable sort: score down, equal scores by row number. To that end a score and
its row number are compared as one integer (float32 bits in an order-keeping form, then the number
counted from the end). Neighbours too close for float32 are put in order by float64
(`pipelines.retrieval.settling`).

Shapes: Q queries, N base vectors, B rows and W columns of a tile, D embedding dimension, k
neighbours, S scores above the bar, T rows with at least one of them.
"""

import warnings
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.retrieval.settling import Indices, settle
from pipelines.retrieval.vectors import Vectors

DEFAULT_MEMORY_MB = 64
BYTES_PER_SCORE = 32  # the score, its key, and what torch.topk copies, at the worst moment
LARGEST_SIDE = 16384
GROUP = 8  # columns looked at together
NARROW = 128
FEW, MANY = 1 / 16, 1 / 4  # of a tile
SPARE = 8  # kept beyond the k asked for, as the last ones may change places
NOTHING = -0x7F800001 << 32  # the key of minus infinity: below that of every score


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The nearest base rows of each query row, best first; 8 bytes a neighbour."""

    index: Indices
    """[Q, k] base rows."""
    score: Vectors
    """[Q, k] inner products: of float64 where they decide, elsewhere of float32."""
    lowest: Vectors
    """[Q] the smallest inner product with any base row: that of the farthest one."""


def nearest(
    queries_QD: Vectors,
    base_ND: Vectors,
    k: int,
    *,
    memory_mb: int = DEFAULT_MEMORY_MB,
    device: str | torch.device = "cpu",
) -> Neighbours:
    """The k rows of the base with the largest inner product with each query (all, if N < k).

    Args:
        queries_QD: [Q, D] float32.
        base_ND: [N, D] float32, N from 1 to 2^31 - 1.
        k: at least 1.
        memory_mb: limit of the working memory, which sets the side of a tile (16 at least).
        device: where the products are computed; another device than the CPU holds both sets.

    Memory: the limit, the vectors of two bands, 28 bytes for each of all rows' k + `SPARE`, and
    what `settle` takes.

    Raises:
        ValueError: no base rows, two dimensions, k below 1, NaN or infinity.
    """
    _check(queries_QD, base_ND, k)
    tiles = _Tiles(queries_QD, base_ND, memory_mb, device)
    best = _Best(len(queries_QD), min(k + SPARE, len(base_ND)), tiles.device)
    for rows in tiles.bands(len(queries_QD)):
        for columns in tiles.bands(len(base_ND)):
            best.absorb(tiles.scores(rows, columns), rows, columns)
    return best.settled(queries_QD, base_ND, k)


def nearest_among(
    vectors_ND: Vectors,
    k: int,
    *,
    memory_mb: int = DEFAULT_MEMORY_MB,
    device: str | torch.device = "cpu",
) -> Neighbours:
    """`nearest` of a set in itself, each row included, in half the products; memory as there."""
    _check(vectors_ND, vectors_ND, k)
    tiles = _Tiles(vectors_ND, vectors_ND, memory_mb, device)
    best = _Best(len(vectors_ND), min(k + SPARE, len(vectors_ND)), tiles.device)
    bands = tiles.bands(len(vectors_ND))
    for number, rows in enumerate(bands):
        for columns in bands[number:]:
            scores_BW = tiles.scores(rows, columns)
            best.absorb(scores_BW, rows, columns)
            if rows != columns:
                best.absorb(scores_BW.T, columns, rows)
    return best.settled(vectors_ND, vectors_ND, k)


class _Best:
    """The k best of every row so far; a row must be given its columns in ascending order."""

    def __init__(self, rows: int, k: int, device: torch.device) -> None:
        self.k = k
        self.keys_Qk = torch.full((rows, k), NOTHING, device=device)
        self.bar_Q = torch.full((rows,), -torch.inf, device=device)
        self.lowest_Q = torch.full((rows,), torch.inf, device=device)

    def absorb(self, scores_BW: Tensor, rows: slice, columns: slice) -> None:
        lowest_B = self.lowest_Q[rows]
        torch.minimum(lowest_B, scores_BW.amin(dim=1), out=lowest_B)
        narrow = scores_BW.shape[1] <= NARROW
        above = None if narrow else _above(scores_BW, self.bar_Q[rows], self.k)
        if above is None:
            self._absorb_all(scores_BW, rows, columns)
        elif len(above[0]):
            self._absorb_some(scores_BW, *above, rows.start, columns.start)

    def _absorb_all(self, scores_BW: Tensor, rows: slice, columns: slice) -> None:
        number_W = torch.arange(columns.start, columns.stop, device=scores_BW.device)
        keys = torch.cat([self.keys_Qk[rows], _keys(scores_BW, number_W)], dim=1)
        self._keep(torch.arange(rows.start, rows.stop, device=keys.device), keys)

    def _absorb_some(
        self, scores_BW: Tensor, row_S: Tensor, column_S: Tensor, first: int, start: int
    ) -> None:
        keys_S = _keys(scores_BW[row_S, column_S], column_S + start)
        row_T, count_T = torch.unique_consecutive(row_S, return_counts=True)
        first_T = count_T.cumsum(0) - count_T
        group_S = torch.repeat_interleave(count_T)
        place_S = torch.arange(len(row_S), device=keys_S.device) - first_T[group_S] + self.k
        row_T = row_T + first
        keys = keys_S.new_full((len(row_T), self.k + int(count_T.max())), NOTHING)
        keys[:, : self.k] = self.keys_Qk[row_T]
        keys[group_S, place_S] = keys_S
        self._keep(row_T, keys)

    def settled(self, queries_QD: Vectors, base_ND: Vectors, k: int) -> Neighbours:
        """The first k of the lists, put in the order of float64."""
        index_Qk = (0xFFFFFFFF - (self.keys_Qk & 0xFFFFFFFF)).to(torch.int32).cpu().numpy()
        score_Qk = _scores(self.keys_Qk).cpu().numpy()
        index, score = settle(index_Qk, score_Qk, queries_QD, base_ND, k)
        return Neighbours(index=index, score=score, lowest=self.lowest_Q.cpu().numpy())

    def _keep(self, row_T: Tensor, keys: Tensor) -> None:
        best_Tk = keys.topk(self.k, dim=1).values
        self.keys_Qk[row_T] = best_Tk
        self.bar_Q[row_T] = _scores(best_Tk[:, -1])


class _Tiles:
    """Tiles of the product of two sets."""

    def __init__(
        self, left: Vectors, right: Vectors, memory_mb: int, device: str | torch.device
    ) -> None:
        self.device = torch.device(device)
        side = int(((memory_mb << 20) / BYTES_PER_SCORE) ** 0.5) // GROUP * GROUP
        self.side = min(max(side, GROUP), LARGEST_SIDE)
        self._left = _tensor(left).to(self.device)
        self._right = self._left if left is right else _tensor(right).to(self.device)
        # torch.mm takes MKL, which AMD processors run at 0.7 x the speed of oneDNN
        self._onednn = self.device.type == "cpu" and torch.backends.mkldnn.is_available()

    def bands(self, length: int) -> list[slice]:
        """Bands of nearly one length: the product of a narrow one may be rounded otherwise."""
        count, groups = max(1, -(-length // self.side)), -(-length // GROUP)
        edges = [min(groups * band // count * GROUP, length) for band in range(count + 1)]
        return [slice(*pair) for pair in pairwise(edges)]

    def scores(self, rows: slice, columns: slice) -> Tensor:
        """[B, W] inner products."""
        left_BD, right_WD = self._left[rows], self._right[columns]
        if self._onednn:
            return functional.linear(left_BD.to_mkldnn(), right_WD.to_mkldnn()).to_dense()
        return torch.mm(left_BD, right_WD.T)


def _tensor(vectors: Vectors) -> Tensor:
    with warnings.catch_warnings():  # read-only arrays are as good: nothing is written here
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(vectors)


def _above(scores_BW: Tensor, bar_B: Tensor, k: int) -> tuple[Tensor, Tensor] | None:
    """Rows (ascending) and columns of the scores above their row's bar, at least the row's k best
    of all; None where they are many.

    Looks at the largest of some columns first: of a tile's two passes the second is short.
    """
    width = scores_BW.shape[1]
    parts = scores_BW.chunk(GROUP if width % GROUP == 0 else 1, dim=1)
    largest_BG = parts[0] if len(parts) == 1 else torch.maximum(parts[0], parts[1])
    for part in parts[2:]:
        torch.maximum(largest_BG, part, out=largest_BG)
    row_S, group_S = (largest_BG > bar_B[:, None]).nonzero(as_tuple=True)
    groups = largest_BG.shape[1]
    share = len(row_S) / max(1, largest_BG.numel())
    if share < FEW:
        column = group_S[:, None] + torch.arange(0, width, groups, device=scores_BW.device)
        keep = scores_BW[row_S[:, None], column] > bar_B[row_S, None]
        return row_S[:, None].expand_as(column)[keep], column[keep]
    if share > MANY and k * GROUP <= width:
        # k groups have a score that is at least the k-th largest of all groups
        best_B = largest_BG.topk(k, dim=1).values[:, -1]
        bar_B = torch.maximum(bar_B, best_B - best_B.abs() * 2.0**-20 - 2.0**-100)
    row_S, column_S = (scores_BW > bar_B[:, None]).nonzero(as_tuple=True)
    return None if len(row_S) > MANY * scores_BW.numel() else (row_S, column_S)


def _keys(scores: Tensor, columns: Tensor) -> Tensor:
    """int64 that order as (score down, column up) when taken largest first."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0: there is no minus zero
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(torch.int64) << 32) + (0xFFFFFFFF - columns)


def _scores(keys: Tensor) -> Tensor:
    ordered = (keys >> 32).to(torch.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).view(torch.float32)


def _check(queries_QD: Vectors, base_ND: Vectors, k: int) -> None:
    if k < 1:
        raise ValueError(f"k={k}: ask for at least one neighbour")
    if queries_QD.ndim != 2 or base_ND.ndim != 2 or queries_QD.shape[1] != base_ND.shape[1]:
        raise ValueError(f"vectors of shapes {queries_QD.shape} and {base_ND.shape} do not fit")
    if not len(base_ND):
        raise ValueError("no base rows to search")
