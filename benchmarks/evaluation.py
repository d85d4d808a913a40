"""Time and memory of the evaluation and of re-ranking, beside the least that they could take.

    python -m benchmarks.evaluation msmt17 market500k rerank_market rerank_msmt17 near_copies growth

Everything runs in one process on random unit vectors with planted identities. An evaluation, with
all its figures, is compared with the bare banded product of the same queries and gallery; a
re-ranking with its own search for neighbours, and at Market-1501's size with the dense algorithm.
What is compared runs in turns; a ratio is that of the medians.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.dense_reranking import dense_rerank
from benchmarks.memory import peak_memory
from benchmarks.planted import Planted
from pipelines.retrieval import Rerank, Settings, evaluate, open_embeddings, settings_of
from pipelines.retrieval.neighbours import nearest_among
from pipelines.retrieval.ranking import TILE_QUERIES
from pipelines.retrieval.reranking import Reranked, rerank
from pipelines.retrieval.stored import HOLD_MB
from pipelines.retrieval.vectors import VectorSource

SIZES = {
    "msmt17": Planted(
        queries=11_659, gallery=82_161, dim=2048, identities=3060, cameras=15, noise=3.2
    ),
    "market500k": Planted(
        queries=3_368,
        gallery=15_913,
        dim=512,
        identities=750,
        cameras=6,
        distractors=500_000,
        noise=1.8,
    ),
    "rerank_market": Planted(
        queries=3_368, gallery=15_913, dim=512, identities=750, cameras=6, noise=1.8
    ),
    "rerank_msmt17": Planted(
        queries=11_659, gallery=82_161, dim=512, identities=3060, cameras=15, noise=1.8
    ),
}
CALLS = 5
"""Of what takes seconds, a turn of what takes a minute."""
COPIES = (5, 50, 500, 19_281)
GROWTH = (10_000, 20_000, 40_000, 80_000)
WIDTH = 32_768
LEAST = 0.01
"""Seconds or MiB; less is not told apart from nothing."""
CPU = torch.device("cpu")
Record = dict[str, Any]


def bare_product(queries_QD: np.ndarray, gallery: VectorSource) -> None:
    """The banded matrix product alone, in tiles of the evaluation's shape."""
    tile = np.empty(TILE_QUERIES * WIDTH, dtype=np.float32)
    for _, rows_WD in gallery.blocks(WIDTH):
        for low in range(0, len(queries_QD), TILE_QUERIES):
            part_BD = queries_QD[low : low + TILE_QUERIES]
            out_BW = tile[: len(part_BD) * len(rows_WD)].reshape(len(part_BD), -1)
            np.matmul(part_BD, rows_WD.T, out=out_BW)


def held(name: str, rounds: int) -> Record:
    """An evaluation of embeddings in memory."""
    embeddings = SIZES[name].embeddings()
    setting = settings_of(embeddings.rows, Settings())[0]
    queries_QD = embeddings.vectors_of(setting.query_index)
    gallery = embeddings.source_of(setting.gallery_index)
    return {
        "features_mib": round(embeddings.vectors.nbytes / 2**20),
        **_compare(lambda: bare_product(queries_QD, gallery), lambda: evaluate(embeddings), rounds),
    }


def on_disk(name: str, rounds: int, hold_mb: int) -> Record:
    """An evaluation of an embeddings file beside the product alone, which reads it too."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "embeddings.parquet"
        SIZES[name].write(path)
        splits = ("query", "gallery")

        def bare() -> None:
            stored = open_embeddings(path, splits=splits, hold_mb=hold_mb)
            setting = settings_of(stored.rows, Settings())[0]
            queries_QD = stored.vectors_of(setting.query_index)
            bare_product(queries_QD, stored.source_of(setting.gallery_index))

        def whole() -> object:
            return evaluate(open_embeddings(path, splits=splits, hold_mb=hold_mb))

        found = _compare(bare, whole, rounds)
        size = SIZES[name]
        rows = size.queries + size.gallery + size.distractors
        return {
            "features_mib": round(rows * size.dim * 4 / 2**20),
            "features_held": hold_mb > 0,
            **found,
        }


def reranking(name: str, rounds: int) -> Record:
    """Re-ranking and its figures beside the search for neighbours."""
    embeddings = SIZES[name].embeddings()
    how = Settings(rerank=Rerank(), by_camera=False)
    k = how.rerank.k1 + 1 if how.rerank else 1
    return {
        "features_mib": round(embeddings.vectors.nbytes / 2**20),
        **_compare(
            lambda: nearest_among(embeddings.vectors, k), lambda: evaluate(embeddings, how), rounds
        ),
    }


def against_dense(rounds: int) -> Record:
    """Re-ranking at Market-1501's size beside the dense algorithm."""
    found = SIZES["rerank_market"].embeddings()
    queries_QD, gallery_GD = found.vectors[:3368], found.vectors[3368:]
    sparse: list[Reranked] = []
    dense: list[np.ndarray] = []

    def ours() -> None:
        sparse[:] = [rerank(queries_QD, gallery_GD)]

    def whole_matrix() -> None:
        dense[:] = [dense_rerank(queries_QD, gallery_GD, k1=20, k2=6, weight=0.3)]

    ours()
    seconds, dense_seconds = [], []
    for _ in range(rounds):
        seconds += [_seconds(ours) for _ in range(CALLS)]
        dense_seconds.append(_seconds(whole_matrix))
    scores_QG = queries_QD @ gallery_GD.T
    sparse[0].adjust(scores_QG, slice(0, len(queries_QD)), slice(0, len(gallery_GD)))
    largest_difference = float(np.abs(scores_QG + dense[0]).max())
    dense.clear()
    return {
        "seconds": _spread(seconds),
        "mib": peak_memory(ours, CPU),
        "dense_seconds": _spread(dense_seconds),
        "dense_mib": peak_memory(whole_matrix, CPU),
        "faster": round(statistics.median(dense_seconds) / statistics.median(seconds), 1),
        "largest_difference": largest_difference,
    }


def near_copies(rounds: int) -> Record:
    """The search for neighbours at Market-1501's size where images are all but copies, in groups,
    beside that of random vectors: float64 has to decide all of their order."""
    vectors_ND = SIZES["rerank_market"].embeddings().vectors
    rows = len(vectors_ND)
    found: Record = {}
    for group in COPIES:
        copies = Planted(
            queries=0, gallery=rows, dim=512, identities=rows // group, cameras=1, noise=1e-5
        )
        among = partial(nearest_among, copies.embeddings().vectors, 21)
        found[str(group)] = _compare(partial(nearest_among, vectors_ND, 21), among, rounds)
    return found


def growth() -> Record:
    """Time and memory over four sizes, with the exponent of N fitted to them."""
    rows = []
    for gallery in GROWTH:
        size = Planted(
            queries=gallery // 8, gallery=gallery, dim=512, identities=gallery // 27, cameras=6
        )
        embeddings = size.embeddings()
        row: Record = {"queries": size.queries, "gallery": gallery}
        for name, how in (
            ("evaluate", Settings()),
            ("rerank", Settings(rerank=Rerank(), by_camera=False)),
        ):
            call = partial(evaluate, embeddings, how)
            row[f"{name}_seconds"] = round(_seconds(call), 2)
            row[f"{name}_mib"] = peak_memory(call, CPU)
        rows.append(row)
        print(row, file=sys.stderr)
    exponents = {
        key: _exponent([row["gallery"] for row in rows], [row[key] for row in rows])
        for key in rows[0]
        if key.endswith(("seconds", "mib"))
    }
    return {"rows": rows, "exponents": exponents}


def _exponent(sizes: list[int], values: list[float]) -> float:
    slope, _ = np.polyfit(np.log(sizes), np.log(np.maximum(values, LEAST)), 1)
    return round(float(slope), 2)


def _compare(bare: Callable[[], object], whole: Callable[[], object], rounds: int) -> Record:
    whole()
    pairs = [(_seconds(bare), _seconds(whole)) for _ in range(rounds)]
    bare_seconds, seconds = zip(*pairs, strict=True)
    return {
        "bare_seconds": _spread(bare_seconds),
        "seconds": _spread(seconds),
        "ratio": round(statistics.median(seconds) / statistics.median(bare_seconds), 3),
        "mib": peak_memory(whole, CPU),
    }


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _spread(values: Any) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2),
        "least": round(min(values), 2),
        "most": round(max(values), 2),
    }


WORK: dict[str, Callable[[int], Record]] = {
    "msmt17": lambda rounds: held("msmt17", rounds),
    "market500k": lambda rounds: on_disk("market500k", rounds, HOLD_MB),
    "market500k_unheld": lambda rounds: on_disk("market500k", rounds, 0),
    "rerank_market": against_dense,
    "rerank_msmt17": lambda rounds: reranking("rerank_msmt17", rounds),
    "near_copies": near_copies,
    "growth": lambda _: growth(),
}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", nargs="+", choices=list(WORK))
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args(arguments)
    for name in asked.work:
        print(json.dumps({"work": name, **WORK[name](asked.rounds)}), flush=True)


if __name__ == "__main__":
    main()
