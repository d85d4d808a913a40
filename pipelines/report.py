"""One HTML page of an evaluation: figures with their protocol, CMC, and ranked results.

The page is one file: styles and pictures stand inside it, it names no other address, and a content
policy in it forbids any. It follows the reader's light or dark setting and the width of a phone.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from pipelines.ranked_queries import RankedHit, RankedQuery
from pipelines.retrieval import describe_protocol
from pipelines.store import Folder
from pipelines.thumbnails import load_thumbnail

THUMBNAIL_BOX = (128, 192)
METRIC_NAMES = {
    "mAP": "mAP (step)",
    "R1": "Rank-1",
    "R5": "Rank-5",
    "R10": "Rank-10",
    "R20": "Rank-20",
    "mINP": "mINP",
    "mAP_trapezoid": "mAP (trapezoid)",
}
"""In the order in which the page shows them."""
PLOT_WIDTH, PLOT_HEIGHT = 420, 250
PLOT_LEFT, PLOT_TOP, PLOT_RIGHT, PLOT_BOTTOM = 42, 12, 410, 212


def write_report(
    path: str | Path,
    *,
    title: str,
    metrics: Mapping[str, float],
    protocol: Mapping[str, Any],
    cmc: Sequence[float],
    queries: Sequence[RankedQuery],
    gallery: Mapping[str, Any] | None = None,
    facts: Mapping[str, object] | None = None,
) -> None:
    """Write the page; it appears under its name only when it is complete.

    Args:
        path: HTML file to write.
        title: heading.
        metrics: `Evaluation.metrics`, in percent.
        protocol: `Evaluation.protocol`.
        cmc: `Evaluation.cmc`, in percent.
        queries: ranked lists to show, see `pipelines.ranked_queries`.
        gallery: `Gallery.info()`.
        facts: more lines (name -> value) about the run: model version, seconds, places.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = files("pipelines").joinpath("report.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        title=title,
        metrics=[(text, metrics[name]) for name, text in METRIC_NAMES.items() if name in metrics],
        protocol_line=describe_protocol(protocol),
        plot=_plot(cmc),
        facts=[*_gallery_facts(gallery or {}), *(facts or {}).items()],
        queries=[_query_view(query) for query in queries],
    )
    place = Folder.open(str(path))
    parent = Folder.open(place.uri.rpartition("/")[0]).make()
    with parent.write(place.name) as stream:
        stream.write(page.encode())


def _gallery_facts(gallery: Mapping[str, Any]) -> list[tuple[str, object]]:
    if not gallery:
        return []
    model = gallery["model"]
    named = " ".join(str(model[part]) for part in ("name", "version") if model.get(part))
    shards = len(gallery["shards"])
    return [
        ("Gallery", gallery["gallery"]),
        ("Rows", f"{gallery['rows']:,} in {shards} shard{'s' if shards != 1 else ''}"),
        (
            "Index",
            f"{gallery['index']}, {gallery['metric']}, {gallery['embedding_dim']} dimensions",
        ),
        ("Size", f"{gallery['bytes'] / 1e6:,.2f} MB"),
        *([("Model", named)] if named else []),
    ]


def _plot(cmc: Sequence[float]) -> dict[str, Any]:
    """Coordinates of the CMC curve and its axes in the plot's own units."""
    width, height = PLOT_RIGHT - PLOT_LEFT, PLOT_BOTTOM - PLOT_TOP
    last = max(2, len(cmc))

    def x(rank: int) -> float:
        return round(PLOT_LEFT + width * (rank - 1) / (last - 1), 1)

    def y(percent: float) -> float:
        return round(PLOT_BOTTOM - height * percent / 100, 1)

    ranks = [rank for rank in (1, 5, 10, 20, 30, 40, 50) if rank <= last]
    marks = [rank for rank in (1, 5, 10, 20) if rank <= len(cmc)]
    return {
        "size": (PLOT_WIDTH, PLOT_HEIGHT),
        "frame": (PLOT_LEFT, PLOT_TOP, PLOT_RIGHT, PLOT_BOTTOM),
        "curve": " ".join(f"{x(i)},{y(value)}" for i, value in enumerate(cmc, start=1)),
        "x_ticks": [(x(rank), rank) for rank in ranks],
        "y_ticks": [(y(percent), percent) for percent in (0, 25, 50, 75, 100)],
        "marks": [(x(rank), y(cmc[rank - 1])) for rank in marks],
        "text": ", ".join(f"rank {rank} {cmc[rank - 1]:.1f} %" for rank in marks),
    }


def _query_view(query: RankedQuery) -> dict[str, Any]:
    thumbnail = load_thumbnail(query.uri, THUMBNAIL_BOX)
    camera = _camera(query.camera)
    alt = f"Query {query.identity}, {camera}"
    return {
        "choice": query.choice,
        "key": query.key,
        "identity": query.identity,
        "camera": camera,
        "ap": 100 * query.average_precision,
        "right": sum(hit.correct for hit in query.hits),
        "picture": thumbnail.data_uri(),
        "alt": alt if thumbnail.problem is None else f"{alt}; no picture: {thumbnail.problem}",
        "hits": [_hit_view(rank, hit) for rank, hit in enumerate(query.hits, start=1)],
    }


def _hit_view(rank: int, hit: RankedHit) -> dict[str, Any]:
    thumbnail = load_thumbnail(hit.uri, THUMBNAIL_BOX)
    identity, camera = hit.identity or "identity unknown", _camera(hit.camera)
    verdict = "right" if hit.correct else "wrong"
    alt = f"Rank {rank}, {verdict}: {identity}, {camera}, score {hit.score:.3f}"
    return {
        "rank": rank,
        "key": hit.key,
        "identity": identity,
        "camera": camera,
        "score": f"{hit.score:.3f}",
        "verdict": verdict,
        "picture": thumbnail.data_uri(),
        "alt": alt if thumbnail.problem is None else f"{alt}; no picture: {thumbnail.problem}",
    }


def _camera(camera: str | None) -> str:
    return "camera unknown" if camera is None else f"camera {camera}"
