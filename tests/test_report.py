"""The report page and the contact sheet, down to their pixels."""

import json
import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.contact_sheet import GREEN, NEUTRAL, RED, contact_sheet
from pipelines.evaluate import as_json
from pipelines.figures_text import METRIC_NAMES
from pipelines.gallery import Hit
from pipelines.report import write_report
from pipelines.report_plots import HARDEST, MOST_CAMERAS
from pipelines.retrieval import Evaluation, Provenance, Rerank, Settings, evaluate
from pipelines.retrieval.protocol import PROTOCOLS
from pipelines.retrieval.ranked_lists import RankedHit, RankedQuery, choose_queries
from pipelines.thumbnails import GREY, load_thumbnail
from tests.embedding_files import embedding_set, embedding_table, random_table
from tests.slow_ranking import ordered_lists

ORANGE = (250, 120, 10)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "orange.png"
    Image.new("RGB", (40, 80), ORANGE).save(path)
    return str(path)


def near(colour: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(colour, other, strict=True)) < 12


def hit(number: int, uri: str | None, identity: str | None = "x") -> Hit:
    return Hit(id=number, key=f"k{number}", identity=identity, camera=None, score=0.5, uri=uri)


class Page(HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def evaluated(tmp_path):
    embeddings = embedding_set(tmp_path, random_table(1))
    return evaluate(embeddings, provenance=Provenance(flip=False))


def stored(evaluated: Evaluation) -> dict[str, Any]:
    """The values as a store gives them back, by name."""
    return json.loads(json.dumps(as_json(evaluated), sort_keys=True))


@pytest.fixture
def page(tmp_path, picture, evaluated) -> tuple[str, Page]:
    hits = (
        RankedHit(key="a", uri=picture, identity="x", camera="2", score=0.91, correct=True),
        RankedHit(
            key="b", uri="/not/there.jpg", identity="y", camera=None, score=0.5, correct=False
        ),
    )
    query = RankedQuery(
        choice="best",
        key="q<1>",
        uri=picture,
        identity="<x>",
        camera="1",
        average_precision=1.0,
        hits=hits,
    )
    gallery = {
        "gallery": "/store/g",
        "model": {"name": "tiny", "version": "3"},
        "shards": [{}, {}],
        "rows": 1234,
        "index": "flat",
        "metric": "cosine",
        "embedding_dim": 64,
        "bytes": 2_000_000,
    }
    write_report(
        tmp_path / "out" / "report.html",
        title="A & B",
        evaluated=stored(evaluated),
        queries=[query],
        gallery=gallery,
        facts={"Search": "1 ms"},
    )
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_stands_alone(page):
    text, parsed = page
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[\w+/=]+", "", text))
    assert all((a["src"] or "").startswith("data:image/jpeg;base64,") for a in parsed.all("img"))
    assert not {"script", "link", "iframe"} & {tag for tag, _ in parsed.tags}


def test_the_page_states_figures_and_protocol(page, evaluated):
    _, parsed = page
    evaluation = evaluated
    for name, value in evaluation.metrics.items():
        assert f"{METRIC_NAMES[name]}{value:.2f}" in parsed.text
    names = ["mAP (step)", "Rank-1", "Rank-5", "Rank-10", "Rank-20", "mINP", "mAP (trapezoid)"]
    assert sorted(names, key=parsed.text.index) == names
    for words in ("market", "step AP", "queries used", "no flip", "no re-ranking"):
        assert words in parsed.text
    for words in ("1,234 in 2 shards", "tiny 3", "2.00 MB", "1 ms", "A & B", "<x>", "q<1>"):
        assert words in parsed.text


def test_the_page_shows_right_wrong_and_missing(page):
    _, parsed = page
    alts = [attributes["alt"] for attributes in parsed.all("img")]
    assert alts == [
        "Query <x>, camera 1",
        "Rank 1, right: x, camera 2, score 0.910",
        "Rank 2, wrong: y, camera unknown, score 0.500; no picture: file is missing",
    ]
    assert [a["class"] for a in parsed.all("figure")[1:]] == ["right", "wrong"]
    shown, missing = (
        Image.open(BytesIO(b64decode((a["src"] or "").partition(",")[2])))
        for a in parsed.all("img")[1:]
    )
    assert shown.size == (40, 80)
    assert near(shown.getpixel((20, 40)), ORANGE)
    assert near(missing.getpixel((3, 3)), GREY)


def test_the_curve_is_the_cmc(page, evaluated):
    _, parsed = page
    evaluation = evaluated
    points = [tuple(map(float, p.split(","))) for p in parsed.all("polyline")[0]["points"].split()]
    assert len(points) == len(evaluation.cmc)
    heights = np.array([212 - y for _, y in points])
    np.testing.assert_allclose(heights / 2, evaluation.cmc, atol=0.05)
    assert f"rank 1 {evaluation.cmc[0]:.1f} %" in parsed.all("svg")[0]["aria-label"]


def test_the_roc_has_a_logarithmic_axis_and_its_points(page, evaluated):
    _, parsed = page
    found = evaluated.verification
    points = [tuple(map(float, p.split(","))) for p in parsed.all("polyline")[1]["points"].split()]
    rates, shares = np.array(found["curve"]).T
    exponents = np.log10(np.maximum(rates, 1e-6))
    expected = np.stack([42 + 368 * (1 + exponents / 6), 212 - 200 * shares], axis=1)
    np.testing.assert_allclose(points, expected, atol=0.05)
    assert len(found["at"]) > 1
    assert parsed.text.index("0.1 %") < parsed.text.index("1 %0")
    for rate, point in found["at"].items():
        row = f"{100 * float(rate):g} %{100 * point['true_rate']:.2f} %{point['threshold']:.4f}"
        assert row in parsed.text
    assert f"below {found['open_set']['threshold']:.4f}." in parsed.text


def page_of(evaluated: dict[str, Any], path: Path) -> Page:
    write_report(path, title="t", evaluated=evaluated, queries=[])
    return Page(path.read_text(encoding="utf-8"))


def test_intervals_stand_beside_the_figures(tmp_path, evaluated):
    values = as_json(evaluated)
    text = page_of(values, tmp_path / "r.html").text
    for name, (low, high) in evaluated.intervals.items():
        figures = f"{evaluated.metrics[name]:.2f}{low:.2f} to {high:.2f}\n"
        assert f"{METRIC_NAMES[name]}{figures}" in text
    without = page_of({**values, "intervals": {}}, tmp_path / "r.html").text
    assert "95 %" not in without
    assert f"mAP (step){evaluated.metrics['mAP']:.2f}\n" in without


def test_the_spread_stands_there_where_there_are_draws(tmp_path, evaluated):
    embeddings = embedding_set(tmp_path, random_table(1))
    drawn = evaluate(embeddings, Settings(protocol="vehicleid", draws=3, resamples=0))
    text = page_of(as_json(drawn), tmp_path / "r.html").text
    assert f"mAP (step){drawn.metrics['mAP']:.2f}{drawn.spread['mAP']:.2f}\n" in text
    assert "over the 3 draws" in text
    assert "±" not in page_of(as_json(evaluated), tmp_path / "r.html").text


@pytest.mark.parametrize("protocol", sorted(set(PROTOCOLS) - {"veri_lists"}))
def test_no_figure_is_left_out(tmp_path, protocol):
    taken = evaluate(embedding_set(tmp_path, random_table(1)), Settings(protocol=protocol))
    text = page_of(as_json(taken), tmp_path / "r.html").text
    for name, value in taken.metrics.items():
        assert f"{METRIC_NAMES[name]}{value:.2f}" in text


def test_camera_pairs_are_a_table(tmp_path, evaluated):
    parsed = page_of(as_json(evaluated), tmp_path / "r.html")
    cells = [a for a in parsed.all("td") if (a.get("style") or "").startswith("--shade")]
    shades = [float((a["style"] or "").partition(": ")[2].rstrip("%")) for a in cells]
    figures = [pair["mAP"] for pair in evaluated.by_camera]
    assert len(shades) == len(figures)
    assert np.argmax(shades) == np.argmax(figures)
    assert np.argmin(shades) == np.argmin(figures)
    assert (np.diff(np.array(shades)[np.argsort(figures)]) >= 0).all()
    for pair in evaluated.by_camera:
        assert f"{pair['mAP']:.1f}" in parsed.text


def pairs_of_cameras(count: int) -> list[dict[str, Any]]:
    return [
        {"query_camera": f"c{q}", "gallery_camera": f"c{g}", "queries": 5, "mAP": q + g, "R1": 1.0}
        for q in range(count)
        for g in range(count)
        if q != g
    ]


def test_many_cameras_are_a_list_of_the_hardest_pairs(tmp_path, evaluated):
    values = as_json(evaluated)
    table = page_of({**values, "by_camera": pairs_of_cameras(MOST_CAMERAS)}, tmp_path / "r.html")
    assert "query ↓" in table.text
    pairs = pairs_of_cameras(MOST_CAMERAS + 1)
    listed = page_of({**values, "by_camera": pairs}, tmp_path / "r.html").text
    assert "query ↓" not in listed
    assert listed.count(" → ") == HARDEST
    assert listed.index("c0 → c1") < listed.index("c0 → c2") < listed.index("c1 → c2")
    assert "c20 → c19" not in listed
    assert f"{HARDEST} of {len(pairs)} pairs" in listed


def test_a_cell_stands_under_its_camera(tmp_path, evaluated):
    pairs = [
        {"query_camera": "a", "gallery_camera": "c", "queries": 5, "mAP": 12.34, "R1": 1.0},
        {"query_camera": "b", "gallery_camera": "a", "queries": 5, "mAP": 50.0, "R1": 1.0},
    ]
    page = page_of({**as_json(evaluated), "by_camera": pairs}, tmp_path / "r.html")
    assert "gallery →ac\n" in page.text
    assert "\na\N{EN DASH}12.3\nb50.0\N{EN DASH}\n" in page.text
    assert "from camera a to c, 12.3\N{NO-BREAK SPACE}%" in page.text


def test_domains_are_a_table_where_there_are_several(tmp_path, evaluated):
    values = as_json(evaluated)
    domains = {"market1501": {"queries": 3368, "mAP": 12.5, "R1": 50.0}}
    page = page_of({**values, "by_domain": domains}, tmp_path / "r.html")
    assert "market15013,36812.5050.00" in page.text
    assert "By domain" not in page_of(values, tmp_path / "r.html").text


def test_the_page_says_what_reranked_scores_are(tmp_path, evaluated):
    how = Settings(rerank=Rerank(k1=5, k2=2))
    taken = evaluate(embedding_set(tmp_path, random_table(1)), how)
    assert "Scores are minus the distances" in page_of(as_json(taken), tmp_path / "r.html").text
    assert "distances" not in page_of(as_json(evaluated), tmp_path / "r.html").text


def test_a_report_without_lists_wrong_pairs_or_cameras(tmp_path):
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 0, 0]]
    table = embedding_table(vectors, identity=["x"] * 4, split=["query"] * 2 + ["gallery"] * 2)
    values = as_json(evaluate(embedding_set(tmp_path, table)))
    text = page_of(values, tmp_path / "r.html").text
    for words in ("Ranked results", "ROC", "Open set", "camera pair", "By domain"):
        assert words not in text
    assert "mAP (step)100.00" in text


def test_the_choice_of_queries_is_best_median_worst():
    table = pa.table({"ap": [0.5, 0.9, 0.1, 0.7, 0.3, 0.2, 0.8]})
    assert choose_queries(table, 3) == [("best", 1), ("median", 0), ("worst", 2)]
    assert choose_queries(table, 6) == [
        ("best", 1),
        ("best", 6),
        ("median", 3),
        ("median", 0),
        ("worst", 2),
        ("worst", 5),
    ]
    everything = choose_queries(table, 50)
    assert sorted(row for _, row in everything) == list(range(7))


def test_the_lists_are_what_the_figures_count(evaluated):
    evaluation = evaluated
    lists = evaluation.lists
    expected = ordered_lists(random_table(1), "market")
    assert [one.choice for one in lists] == ["best"] * 4 + ["median"] * 4 + ["worst"] * 4
    precision = dict(
        zip(
            evaluation.per_query["key"].to_pylist(),
            evaluation.per_query["ap"].to_pylist(),
            strict=True,
        )
    )
    for one in lists:
        assert [(hit.key, hit.correct) for hit in one.hits] == expected[one.key][:10]
        assert one.average_precision == precision[one.key]
    assert lists[0].average_precision == max(precision.values())
    assert lists[8].average_precision == min(precision.values())


def frames(path: Path, count: int) -> list[tuple[int, ...]]:
    """Colour of the left frame of each hit in the first row of a sheet, by walking its middle."""
    with Image.open(path) as sheet:
        row = [sheet.getpixel((x, 150)) for x in range(sheet.width)]
    colours = [c for c, previous in zip(row, [None, *row], strict=False) if c != previous]
    return [c for c in colours if c in (GREEN, RED, NEUTRAL)][: 2 * count : 2]


def test_the_sheet_frames_right_and_wrong_hits(tmp_path, picture):
    hits = [hit(0, picture, "x"), hit(1, picture, "y"), hit(2, picture, None)]
    contact_sheet(tmp_path / "s.png", picture, hits, query_identity="x")
    assert frames(tmp_path / "s.png", 3) == [GREEN, RED, RED]
    contact_sheet(tmp_path / "n.png", picture, hits)
    assert frames(tmp_path / "n.png", 3) == [NEUTRAL] * 3


def test_the_sheet_shows_the_query_first_and_breaks_rows(tmp_path, picture):
    sizes = []
    for count in (0, 3, 10, 11):
        contact_sheet(tmp_path / "s.png", picture, [hit(i, picture) for i in range(count)])
        with Image.open(tmp_path / "s.png") as sheet:
            assert sheet.format == "PNG"
            assert near(sheet.getpixel((70, 100)), ORANGE)
            sizes.append(sheet.size)
    assert sizes[0][0] < sizes[1][0] < sizes[2][0] == sizes[3][0]
    assert sizes[0][1] == sizes[1][1] == sizes[2][1] < sizes[3][1]


def test_pictures_that_cannot_be_shown_become_tiles_that_say_why(tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("not a picture")
    tiny = tmp_path / "tiny.png"
    Image.new("RGB", (1, 1)).save(tiny)
    cases = {
        None: "no picture on record",
        str(tmp_path / "gone.jpg"): "file is missing",
        str(text): "not an image file",
        str(tiny): "1x1 pixels",
    }
    for uri, reason in cases.items():
        thumbnail = load_thumbnail(uri, (64, 128))
        assert reason in (thumbnail.problem or "")
        assert thumbnail.picture.size == (64, 128)
        assert thumbnail.picture.getpixel((0, 0)) == GREY
        assert thumbnail.picture.getextrema() != ((128, 128),) * 3


def test_pictures_shrink_into_the_box_and_keep_their_aspect(tmp_path):
    Image.new("L", (400, 100), 200).save(tmp_path / "wide.png")
    thumbnail = load_thumbnail(f"file://{tmp_path}/wide.png", (128, 192))
    assert (thumbnail.picture.size, thumbnail.picture.mode) == ((128, 32), "RGB")
    assert thumbnail.problem is None
