"""What a finished run shows: the ranked queries, the page, the table."""

import time
from typing import Any

from pipelines.console import Reporter
from pipelines.gallery import Gallery, open_gallery
from pipelines.report import write_report
from pipelines.retrieval import EmbeddingSet, describe_protocol, load_embeddings
from pipelines.retrieval.ranked_lists import RankedQuery
from pipelines.store import Folder

TOP_K = 10
PAGE = "report.html"


def search_milliseconds(queries: EmbeddingSet, gallery: Gallery) -> float:
    """Wall time of one query's top 10, when all are asked together."""
    start = time.perf_counter()
    gallery.search(queries.vectors, top_k=TOP_K)
    return 1000 * (time.perf_counter() - start) / len(queries)


def write_page(
    folder: Folder, values: dict[str, Any], evaluated: dict[str, Any], lists: list[RankedQuery]
) -> tuple[str, float]:
    """Write the page of ranked results into `folder`; its address, and the milliseconds a search
    takes."""
    gallery = open_gallery(values["gallery"])
    queries = load_embeddings(values["embeddings"], splits=["query"])
    milliseconds = search_milliseconds(queries, gallery)
    model = values["model"]
    write_report(
        folder.path(PAGE),
        title=f"{model['name']} version {model['version']}",
        evaluated=evaluated,
        queries=lists,
        gallery=gallery.info(),
        facts={
            "Images": f"{values['images']:,} ({values['quarantined']} in quarantine)",
            "Search": f"{milliseconds:.2f} ms a query",
            "Alias when made": model["alias"] or "none",
            "Checkpoint": values["checkpoint"],
            "Tracking": values["tracking"],
        },
    )
    return folder.path(PAGE), milliseconds


def print_table(values: dict[str, Any], reporter: Reporter) -> None:
    """The short table that a run ends with."""
    metrics, model, protocol = values["metrics"], values["model"], values["protocol"]
    figures = "   ".join(f"{name} {metrics[name]:.2f}" for name in ("mAP", "R1", "R5", "mINP"))
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in values["seconds"].items())
    rows = {
        "figures": f"{figures}   (percent)",
        "protocol": describe_protocol(protocol),
        "gallery": f"{values['rows']} images in {values['shards']} shards: {values['gallery']}",
        "search": f"{values['search_ms']:.2f} ms a query, top {TOP_K}",
        "model": f"{model['name']} version {model['version']} ({model['alias'] or 'no alias'})",
        "report": values["report"],
        "tracking": values["tracking"],
        "seconds": seconds,
    }
    for name, value in rows.items():
        reporter.say(f"{name:<10}{value}")
