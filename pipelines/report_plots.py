"""Coordinates and words of the report's curves and of its table of camera pairs.

Lengths are in the plot's own units; the page stretches them to the width there is.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

PLOT_WIDTH, PLOT_HEIGHT = 420, 250
PLOT_LEFT, PLOT_TOP, PLOT_RIGHT, PLOT_BOTTOM = 42, 12, 410, 212
RANKS = (1, 5, 10, 20)
LOWEST_EXPONENT = -6
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST_CAMERAS = 20
"""A table of more cameras could not be read."""
HALF_WIDE = 9
"""Columns that have room beside another card."""
HARDEST = 20
SHADE = 40
"""Percent of the accent colour behind the easiest pair; the figures stay readable on it."""


def cmc_plot(cmc: Sequence[float]) -> dict[str, Any]:
    """The CMC curve, in percent at rank 1, 2, ..."""
    last = max(2, len(cmc))

    def x(rank: float) -> float:
        return _across((rank - 1) / (last - 1))

    marks = [rank for rank in RANKS if rank <= len(cmc)]
    return _plot(
        x,
        curve=list(enumerate(cmc, start=1)),
        marks=[(rank, cmc[rank - 1]) for rank in marks],
        ticks=[(rank, str(rank)) for rank in (*RANKS, 30, 40, 50) if rank <= last],
        label="first right answer at rank, queries in %",
        text="CMC curve: " + ", ".join(f"rank {rank} {cmc[rank - 1]:.1f} %" for rank in marks),
    )


def roc_plot(verification: Mapping[str, Any]) -> dict[str, Any] | None:
    """True rate by false alarm rate, which is on a logarithmic axis; None where there is no wrong
    pair.

    Args:
        verification: `Evaluation.verification`.
    """
    if not verification["pairs"]["wrong"]:
        return None

    def x(rate: float) -> float:
        exponent = math.log10(rate) if rate > 0 else LOWEST_EXPONENT
        return _across(1 - max(exponent, LOWEST_EXPONENT) / LOWEST_EXPONENT)

    found = dict(sorted((float(asked), point) for asked, point in verification["at"].items()))
    ticks = [(10.0**e, "10" + str(e).translate(SUPERSCRIPT)) for e in range(LOWEST_EXPONENT, 0)]
    plot = _plot(
        x,
        curve=[(rate, 100 * true_rate) for rate, true_rate in verification["curve"]],
        marks=[(p["false_alarm_rate"], 100 * p["true_rate"]) for p in found.values()],
        ticks=[*ticks, (1.0, "1")],
        label="false alarm rate; right pairs found in %",
        text="ROC curve: "
        + ", ".join(
            f"{100 * point['true_rate']:.1f} % found at a false alarm rate of {100 * asked:g} %"
            for asked, point in found.items()
        ),
    )
    points = [
        {"rate": 100 * asked, "found": 100 * p["true_rate"], "threshold": p["threshold"]}
        for asked, p in found.items()
    ]
    highest = max(rate for rate, _ in verification["curve"])
    return {**plot, "points": points, "highest": 100 * highest, **verification["pairs"]}


def camera_pairs(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Rows by the query's camera and columns by the answer's, or the hardest pairs alone where
    there are many cameras; None where no two pairs can be compared.

    Args:
        pairs: `Evaluation.by_camera`.
    """
    if len(pairs) < 2:
        return None
    ordered = sorted(pairs, key=lambda pair: pair["mAP"])
    asking = _names(pair["query_camera"] for pair in pairs)
    answering = _names(pair["gallery_camera"] for pair in pairs)
    shown: dict[str, Any] = {
        "count": len(pairs),
        "hardest": ordered[:HARDEST],
        "rows": None,
        "full": False,
    }
    if len({*asking, *answering}) > MOST_CAMERAS:
        return shown
    low, high = ordered[0]["mAP"], ordered[-1]["mAP"]
    by_names = {(pair["query_camera"], pair["gallery_camera"]): pair for pair in pairs}

    def cell(pair: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if pair is None:
            return None
        return {**pair, "shade": round(SHADE * (pair["mAP"] - low) / max(high - low, 1e-9))}

    rows = [(name, [cell(by_names.get((name, other))) for other in answering]) for name in asking]
    return {**shown, "columns": answering, "rows": rows, "full": len(answering) > HALF_WIDE}


def _names(cameras: Iterable[str]) -> list[str]:
    """By dataset, and c2 before c10."""

    def place(name: str) -> tuple[str, int, str]:
        dataset, _, camera = name.rpartition("/")
        return dataset, len(camera), camera

    return sorted(set(cameras), key=place)


def _across(share: float) -> float:
    return round(PLOT_LEFT + (PLOT_RIGHT - PLOT_LEFT) * share, 1)


def _up(percent: float) -> float:
    return round(PLOT_BOTTOM - (PLOT_BOTTOM - PLOT_TOP) * percent / 100, 1)


def _plot(
    x: Callable[[float], float],
    *,
    curve: Sequence[tuple[float, float]],
    marks: Sequence[tuple[float, float]],
    ticks: Sequence[tuple[float, str]],
    label: str,
    text: str,
) -> dict[str, Any]:
    """`curve` and `marks` are (abscissa, percent)."""
    return {
        "size": (PLOT_WIDTH, PLOT_HEIGHT),
        "frame": (PLOT_LEFT, PLOT_TOP, PLOT_RIGHT, PLOT_BOTTOM),
        "curve": " ".join(f"{x(at)},{_up(percent)}" for at, percent in curve),
        "x_ticks": [(x(at), name) for at, name in ticks],
        "y_ticks": [(_up(percent), percent) for percent in (0, 25, 50, 75, 100)],
        "marks": [(x(at), _up(percent)) for at, percent in marks],
        "label": label,
        "text": text,
    }
