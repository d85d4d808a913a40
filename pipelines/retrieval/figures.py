"""From counted ranks to figures: the averages, their intervals, and by camera pair and domain.

Shapes: Q queries, P right answers of all queries.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.retrieval.bootstrap import intervals
from pipelines.retrieval.metrics import (
    SortedRanks,
    average_precision_step,
    average_precision_top_ten,
    average_precision_trapezoid,
    cmc_curve,
    inverse_negative_penalty,
)
from pipelines.retrieval.pairs import Pairs, Rows
from pipelines.retrieval.protocol import Protocol

CMC_LENGTH = 50
CMC_RANKS = (1, 5, 10, 20)
NO_CAMERA = "unknown"
AVERAGES = {"mAP": "ap", "mAP_trapezoid": "ap_trapezoid", "mINP": "inp"}


def per_query_table(keys: pa.ChunkedArray, ranks: SortedRanks, rules: Protocol) -> pa.Table:
    """[Q] key, ap, ap_trapezoid, inp, matches, first_hit_rank (from 1), and ap_top10 where the
    protocol has it."""
    columns = {
        "key": keys,
        "ap": average_precision_step(ranks),
        "ap_trapezoid": average_precision_trapezoid(ranks),
        "inp": inverse_negative_penalty(ranks),
        "matches": ranks.counts,
        "first_hit_rank": ranks.first + 1,
    }
    if rules.top_ten:
        columns["ap_top10"] = average_precision_top_ten(ranks)
    return pa.table(columns)


def cmc_percent(per_query: pa.Table) -> tuple[float, ...]:
    """[50] CMC in percent at rank 1, 2, ..."""
    first_Q = per_query["first_hit_rank"].to_numpy() - 1
    return tuple((100 * cmc_curve(first_Q, CMC_LENGTH)).tolist())


def shares(per_query: pa.Table, rules: Protocol, gallery_size: int) -> dict[str, np.ndarray]:
    """[Q] values between 0 and 1 of each figure, whose means are the figures."""
    first_Q = per_query["first_hit_rank"].to_numpy()
    found = {name: per_query[column].to_numpy() for name, column in AVERAGES.items()}
    if rules.top_ten:
        found["mAP_top10"] = per_query["ap_top10"].to_numpy()
    for rank in sorted({*CMC_RANKS, *rules.ranks}):
        found[f"R{rank}"] = first_Q <= rank
    if rules.percent_rank:
        found["R1%"] = first_Q <= max(1, round(gallery_size / 100))
    return {name: np.asarray(value_Q, dtype=np.float64) for name, value_Q in found.items()}


def averages(shares_Q: dict[str, np.ndarray]) -> dict[str, float]:
    """Means in percent."""
    return {name: 100 * float(np.mean(value_Q)) for name, value_Q in shares_Q.items()}


def confidence(
    shares_Q: dict[str, np.ndarray], *, resamples: int, seed: int
) -> dict[str, list[float]]:
    """[lowest, highest] of each figure in percent, see `bootstrap.intervals`; nothing where there
    are no resamples."""
    if resamples == 0:
        return {}
    ranges = 100 * intervals(np.stack(list(shares_Q.values())), resamples=resamples, seed=seed)
    return {name: ends.tolist() for name, ends in zip(shares_Q, ranges, strict=True)}


def by_domain(
    domains: pa.ChunkedArray, shares_Q: dict[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Figures of the queries of each domain; the gallery stays whole."""
    names, code_Q = _codes(domains)
    result = {}
    for code, name in enumerate(names):
        chosen_Q = code_Q == code
        figures = averages({key: value_Q[chosen_Q] for key, value_Q in shares_Q.items()})
        result[name] = {"queries": int(chosen_Q.sum()), **figures}
    return result


def by_camera_pair(
    query_camera: pa.ChunkedArray,
    gallery_camera: pa.ChunkedArray,
    good: Pairs,
    score_P: npt.NDArray[np.float64],
    camera_before_P: Rows,
) -> list[dict[str, Any]]:
    """Figures of the queries of one camera on the gallery of another, for every pair of cameras
    between which there is a right answer."""
    query_names, query_Q = _codes(query_camera)
    gallery_names, gallery_G = _codes(gallery_camera)
    query_P = good.query
    pair_P = query_Q[query_P] * len(gallery_names) + gallery_G[good.row]
    order_P = np.argsort(pair_P, kind="stable")
    begins = np.flatnonzero(np.diff(pair_P[order_P], prepend=-1))
    result = []
    for chosen in np.split(order_P, begins[1:]):
        q, g = divmod(int(pair_P[chosen[0]]), len(gallery_names))
        _, number = np.unique(query_P[chosen], return_inverse=True)
        start = np.searchsorted(number, np.arange(int(number.max()) + 2))
        part = Pairs(start=start, row=good.row[chosen])
        ranks = SortedRanks.of(part, score_P[chosen], camera_before_P[chosen])
        result.append(
            {
                "query_camera": query_names[q],
                "gallery_camera": gallery_names[g],
                "queries": len(ranks.counts),
                "mAP": 100 * float(np.mean(average_precision_step(ranks))),
                "R1": 100 * float(np.mean(ranks.first == 0)),
            }
        )
    return result


def _codes(values: pa.ChunkedArray) -> tuple[list[str], Rows]:
    encoded = pc.fill_null(values, NO_CAMERA).combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=lambda i: (len(names[i]), names[i]))
    place = np.empty(len(names), dtype=np.int64)
    place[order] = np.arange(len(names))
    return [names[i] for i in order], place[np.asarray(encoded.indices, dtype=np.int64)]
