"""What a finished run shows: the ranked queries, the page, the table."""

import time
from typing import Any

import pyarrow as pa
from rich.table import Table

from pipelines.console import Reporter
from pipelines.gallery import Gallery, open_gallery
from pipelines.ranked_queries import ranked_queries
from pipelines.report import write_report
from pipelines.retrieval import EmbeddingSet, load_embeddings
from pipelines.store import Folder

TOP_K = 10
SHOWN = 12
PAGE = "report.html"


def search_milliseconds(queries: EmbeddingSet, gallery: Gallery) -> float:
    """Wall time of one query's top 10, when all are asked together."""
    start = time.perf_counter()
    gallery.search(queries.vectors, top_k=TOP_K)
    return 1000 * (time.perf_counter() - start) / len(queries)


def write_page(
    folder: Folder, values: dict[str, Any], evaluated: dict[str, Any], per_query: pa.Table
) -> tuple[str, float]:
    """Write the page of ranked results into `folder`; its address, and the milliseconds a search
    takes."""
    embeddings = load_embeddings(values["embeddings"], splits=["query", "gallery"])
    gallery = open_gallery(values["gallery"])
    milliseconds = search_milliseconds(embeddings.split("query"), gallery)
    model = values["model"]
    write_report(
        folder.path(PAGE),
        title=f"{model['name']} version {model['version']}",
        metrics=evaluated["metrics"],
        protocol=evaluated["protocol"],
        cmc=evaluated["cmc"],
        queries=ranked_queries(
            embeddings, per_query, protocol=evaluated["protocol"]["name"], count=SHOWN
        ),
        gallery=gallery.info(),
        facts={
            "Images": f"{values['images']:,} ({values['quarantined']} in quarantine)",
            "Search": f"{milliseconds:.2f} ms a query",
            "Alias": model["alias"],
            "Checkpoint": values["checkpoint"],
            "Tracking": values["tracking"],
        },
    )
    return folder.path(PAGE), milliseconds


def print_table(values: dict[str, Any], reporter: Reporter) -> None:
    """The short table that a run ends with."""
    metrics, model, protocol = values["metrics"], values["model"], values["protocol"]
    table = Table(show_header=False, box=None, pad_edge=False)
    dropped = sum(protocol["queries_dropped"].values())
    rows = [
        *((name, f"{metrics[name]:.2f} %") for name in ("mAP", "R1", "R5", "mINP")),
        (
            "protocol",
            f"{protocol['name']}, step AP, {protocol['queries_used']} queries, {dropped} dropped",
        ),
        ("gallery", f"{values['rows']} images in {values['shards']} shards"),
        ("search", f"{values['search_ms']:.2f} ms a query"),
        ("model", f"{model['name']} version {model['version']} ({model['alias']})"),
        ("report", values["report"]),
        ("gallery at", values["gallery"]),
        ("tracking", values["tracking"]),
        ("seconds", ", ".join(f"{k} {v:.0f}" for k, v in values["seconds"].items())),
    ]
    for name, value in rows:
        table.add_row(name, str(value))
    reporter.console.print(table, soft_wrap=True)
