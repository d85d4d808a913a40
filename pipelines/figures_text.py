"""The figures of an evaluation as lines for people."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.retrieval import describe_protocol

WORST_PAIRS = 3
MAIN = ("mAP", "R1")
METRIC_NAMES = {
    "mAP": "mAP (step)",
    "mAP_top10": "mAP (top 10)",
    "R1": "Rank-1",
    "R2": "Rank-2",
    "R4": "Rank-4",
    "R5": "Rank-5",
    "R8": "Rank-8",
    "R10": "Rank-10",
    "R20": "Rank-20",
    "R1%": "Recall at 1 %",
    "mINP": "mINP",
    "NMI": "NMI",
    "mAP_trapezoid": "mAP (trapezoid)",
}
"""In the order in which people see them."""


def figure_lines(values: Mapping[str, Any]) -> Iterator[str]:
    """Of `pipelines.evaluate.as_json`: the figures, how sure they are, and their protocol."""
    metrics = values["metrics"]
    shown = "  ".join(f"{name} {metrics[name]:.2f}" for name in METRIC_NAMES if name in metrics)
    yield f"{shown}  (percent)"
    if values["spread"]:
        draws = values["protocol"]["draws"]
        yield f"standard deviation over {draws} draws: " + _some(values["spread"])
    if values["intervals"]:
        ranges = {name: values["intervals"][name] for name in MAIN}
        yield "95 % intervals, by resampling the queries: " + ", ".join(
            f"{name} {low:.2f} to {high:.2f}" for name, (low, high) in ranges.items()
        )
    yield from _verification(values["verification"])
    yield from _camera_pairs(values["by_camera"])
    for domain, figures in values["by_domain"].items():
        yield f"{domain}: {figures['queries']:,} queries, " + _some(figures)
    yield describe_protocol(values["protocol"])


def _some(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {figures[name]:.2f}" for name in MAIN)


def _verification(found: Mapping[str, Any]) -> Iterator[str]:
    if found["at"]:
        shares = ", ".join(
            f"{100 * point['true_rate']:.2f} % at {100 * float(rate):g} % false alarms"
            for rate, point in sorted(found["at"].items(), key=lambda one: float(one[0]))
        )
        yield f"right pairs found: {shares}"
    open_set = found["open_set"]
    if open_set:
        yield (
            f"open set, from a score of {open_set['threshold']:.4f} on: "
            f"{100 * open_set['detection_rate']:.2f} % of the known are found, "
            f"{100 * open_set['false_alarm_rate']:.1f} % of strangers raise an alarm"
        )


def _camera_pairs(pairs: list[Mapping[str, Any]]) -> Iterator[str]:
    if len(pairs) < 2:
        return
    hardest = sorted(pairs, key=lambda pair: pair["mAP"])[:WORST_PAIRS]
    named = ", ".join(
        f"{pair['query_camera']} to {pair['gallery_camera']} (mAP {pair['mAP']:.2f})"
        for pair in hardest
    )
    yield f"hardest of {len(pairs)} camera pairs: {named}"
