"""One HTML page of an evaluation: figures with their protocol, curves, and ranked results.

The page is one file: styles and pictures stand inside it, it names no other address, and a content
policy in it forbids any. It follows the reader's light or dark setting and the width of a phone.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from pipelines.figures_text import METRIC_NAMES
from pipelines.report_plots import camera_pairs, cmc_plot, roc_plot
from pipelines.retrieval import describe_protocol
from pipelines.retrieval.ranked_lists import RankedHit, RankedQuery
from pipelines.store import Folder
from pipelines.thumbnails import load_thumbnail

THUMBNAIL_BOX = (128, 192)


def write_report(
    path: str | Path,
    *,
    title: str,
    evaluated: Mapping[str, Any],
    queries: Sequence[RankedQuery],
    gallery: Mapping[str, Any] | None = None,
    facts: Mapping[str, object] | None = None,
) -> None:
    """Write the page; it appears under its name only when it is complete.

    Args:
        path: HTML file to write.
        title: heading.
        evaluated: the evaluation as `pipelines.evaluate.as_json` gives it.
        queries: ranked lists to show, see `pipelines.retrieval.ranked_lists`.
        gallery: `Gallery.info()`.
        facts: more lines (name -> value) about the run: model version, seconds, places.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = files("pipelines").joinpath("report.html.j2").read_text(encoding="utf-8")
    protocol = evaluated["protocol"]
    page = environment.from_string(template).render(
        title=title,
        metrics=_metrics(evaluated),
        intervals=bool(evaluated["intervals"]),
        draws=protocol["draws"],
        protocol_line=describe_protocol(protocol),
        cmc=cmc_plot(evaluated["cmc"]),
        roc=roc_plot(evaluated["verification"]),
        open_set=evaluated["verification"]["open_set"],
        reranked=bool(protocol["rerank"]),
        cameras=camera_pairs(evaluated["by_camera"]),
        domains=evaluated["by_domain"],
        facts=[*_gallery_facts(gallery or {}), *(facts or {}).items()],
        queries=[_query_view(query) for query in queries],
    )
    place = Folder.open(str(path))
    parent = Folder.open(place.uri.rpartition("/")[0]).make()
    with parent.write(place.name) as stream:
        stream.write(page.encode())


def _metrics(evaluated: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name, value, interval and spread of every figure, as far as it has them."""
    return [
        {
            "name": text,
            "value": evaluated["metrics"][name],
            "interval": evaluated["intervals"].get(name),
            "spread": evaluated["spread"].get(name),
        }
        for name, text in METRIC_NAMES.items()
        if name in evaluated["metrics"]
    ]


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
