"""When nobody in the gallery is right: rates of false alarms and a threshold.

ROC over pairs: a threshold's false alarm rate is the share of wrong (query, row) pairs at or above
it, its true rate that of right pairs. Open set: each query is taken once as a person who is in the
gallery (found if a right answer reaches the threshold and is ahead of every wrong one) and once as
a stranger (a false alarm if a wrong answer reaches it).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.retrieval.scores import BINS, HIGHEST_RATE, Histogram, edge

RATES = (1e-4, 1e-3, 1e-2)
STRANGERS = 0.01
CURVE_POINTS = 33
ABOVE_ALL = 1 + 2 / BINS
"""A threshold that no score reaches; a cosine of 1 may come out a rounding above."""


def true_rates(score_P: npt.NDArray[np.float64], wrong: Histogram) -> dict[str, Any]:
    """Share of right pairs found at each false alarm rate of `RATES`, with the threshold and the
    rate it really has; and a curve of (false alarm rate, true rate).

    The threshold is the lowest edge of a bin (steps of 2 / 65,536) whose false alarm rate is no
    higher than asked; above 1, where nothing is found, if the highest bin has too many. Where there
    are fewer wrong pairs than one in a rate, that rate is left out.
    """
    at_or_above = wrong.at_or_above() / max(1, wrong.total)
    sorted_P = np.sort(score_P)

    def point(rate: float) -> dict[str, float]:
        number = int(np.argmax(at_or_above <= rate))
        threshold = float(edge(number)) if number < BINS else ABOVE_ALL
        return {
            "threshold": threshold,
            "false_alarm_rate": float(at_or_above[number]),
            "true_rate": _share_from(sorted_P, threshold),
        }

    told = [rate for rate in RATES if rate * wrong.total >= 1]
    lowest = max(1e-6, 1 / max(1, wrong.total))
    highest = 1.0 if wrong.floor == -np.inf else HIGHEST_RATE
    curve = [point(rate) for rate in np.geomspace(lowest, highest, CURVE_POINTS)]
    return {
        "at": {f"{rate:.0e}": point(rate) for rate in told},
        "curve": [[p["false_alarm_rate"], p["true_rate"]] for p in curve],
        "pairs": {"right": len(score_P), "wrong": wrong.total},
    }


def suggest_threshold(
    best_right_Q: npt.NDArray[np.float64],
    best_wrong_Q: npt.NDArray[np.float32],
    right_first_Q: npt.NDArray[np.bool_],
) -> dict[str, float] | None:
    """The threshold that at most one stranger in a hundred reaches, and the share of known persons
    whose first row is right and reaches it; None where hardly a query meets a wrong row.

    Args:
        best_right_Q: highest score of a right answer.
        best_wrong_Q: highest score of a wrong row, -inf where there is none.
        right_first_Q: whether the first row of the ranking is right.
    """
    wrong_Q = np.sort(best_wrong_Q)[::-1]
    allowed = wrong_Q[int(STRANGERS * len(wrong_Q))]
    if allowed == -np.inf:
        return None
    threshold = np.nextafter(allowed, np.float32(np.inf))
    found_Q = (best_right_Q >= threshold) & right_first_Q
    return {
        "threshold": float(threshold),
        "false_alarm_rate": float(np.mean(wrong_Q >= threshold)),
        "detection_rate": float(np.mean(found_Q)),
    }


def _share_from(sorted_P: npt.NDArray[np.float64], threshold: float) -> float:
    below = np.searchsorted(sorted_P, threshold, side="left")
    return float(1 - below / len(sorted_P))
