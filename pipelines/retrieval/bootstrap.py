"""How far figures would move with other queries (Efron, "Bootstrap Methods", 1979)."""

import numpy as np
import numpy.typing as npt

LEVEL = 95
RESAMPLES_AT_ONCE = 64


def intervals(
    value_MQ: npt.NDArray[np.float64], *, resamples: int, seed: int
) -> npt.NDArray[np.float64]:
    """[M, 2] lowest and highest mean, at a level of 95 %, of M figures over Q queries.

    Queries are drawn with replacement, the same ones for all figures; between the percentiles 2.5
    and 97.5 of the means. The gallery and the model stay what they are: their chance is not in it.

    Memory: 64 Q counts of 8 bytes.
    """
    rng = np.random.default_rng(seed)
    queries = value_MQ.shape[1]
    means = []
    for start in range(0, resamples, RESAMPLES_AT_ONCE):
        size = min(RESAMPLES_AT_ONCE, resamples - start)
        drawn_RQ = np.stack(
            [np.bincount(rng.integers(0, queries, queries), minlength=queries) for _ in range(size)]
        )
        means.append(value_MQ @ drawn_RQ.T / queries)
    tail = (100 - LEVEL) / 2
    return np.percentile(np.concatenate(means, axis=1), (tail, 100 - tail), axis=1).T
