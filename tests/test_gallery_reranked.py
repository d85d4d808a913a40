"""Re-ranked search of a built gallery against the dense algorithm, and by the command."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image, ImageChops

import pipelines.gallery as gallery
from pipelines.cli import reid
from pipelines.contact_sheet import GAP, TILE_HEIGHT, contact_sheet
from pipelines.embedder import WEIGHTS, Embedder, default_device, read_card
from pipelines.errors import UserError
from pipelines.gallery import Reranking, build_gallery, reranked
from pipelines.gallery.reranked import _LookUps
from pipelines.search import open_query_model
from pipelines.store import Folder, sha256_file
from tests.commands import answer
from tests.embedding_files import embedding_table
from tests.model_folders import write_model, write_pictures
from tests.slow_reranking import dense_rerank
from tests.test_gallery_reranking import PlainGallery
from tests.test_reranking import DATA

ROWS, QUERIES = 75, 3


class Case:
    """A gallery built of three shards, and the vectors in it by id."""

    def __init__(self, folder: Path, kind: str, *, rows: int = ROWS, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        vectors = DATA[kind](rng, rows + QUERIES)
        role = rng.choice(["normal", "distractor", "junk"], rows, p=[0.6, 0.3, 0.1])
        role[:2] = "normal", "distractor"
        self.queries, given = vectors[:QUERIES], vectors[QUERIES:]
        self.vectors = given[role != "junk"]
        identity = [f"p{i % 6}" for i in range(rows)]
        table = embedding_table(given, identity=identity, role=list(role))
        pq.write_table(table, folder / "e.parquet")
        build_gallery(folder / "e.parquet", str(folder / "g"), model={}, shards=3)
        self.opened = gallery.open(folder / "g")
        assert len(self.opened) == len(self.vectors)
        self.plain = PlainGallery(self.vectors, np.arange(len(self.vectors)))

    def distances(self, query: np.ndarray, settings: Reranking) -> np.ndarray:
        return dense_rerank(query[None], self.vectors, settings.k1, settings.k2, settings.weight)[0]


@pytest.mark.parametrize("kind", DATA)
def test_the_shards_answer_as_the_reranking_asks(tmp_path, kind):
    case = Case(tmp_path, kind)
    look_ups = _LookUps(case.opened._shards)
    ids = np.array([40, 2, 61, 2])
    np.testing.assert_allclose(look_ups.vectors(ids), case.vectors[ids], atol=1e-7)
    case.plain.rows = look_ups.vectors(case.plain.ids)
    for asked in (case.queries, case.plain.rows, -case.plain.rows):
        for k in (1, 21, 1000):
            for found, expected in zip(
                look_ups.search(asked, k), case.plain.search(asked, k), strict=True
            ):
                np.testing.assert_array_equal(found, expected)


SETTINGS = [
    Reranking(),
    Reranking(candidates=12),
    Reranking(k1=5, k2=3, weight=0.5, candidates=30),
    Reranking(k1=4, k2=9, weight=0.1, candidates=15),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", DATA)
def test_scores_are_those_of_the_dense_algorithm(tmp_path, kind, settings):
    case = Case(tmp_path, kind, seed=settings.k1)
    for query in case.queries:
        (hits,) = case.opened.search(query[None], settings.candidates, rerank=settings)
        first = case.opened.search(query[None], settings.candidates)[0]
        assert sorted(hit.id for hit in hits) == sorted(hit.id for hit in first)
        keys = {hit.id: (hit.key, hit.identity) for hit in first}
        assert all(keys[hit.id] == (hit.key, hit.identity) for hit in hits)
        expected = case.distances(query, settings)
        ids, scores = [hit.id for hit in hits], [hit.score for hit in hits]
        np.testing.assert_allclose(scores, -expected[ids], atol=1e-5)
        assert (np.diff(scores) <= 0).all()
        assert (np.diff(ids)[np.diff(scores) == 0] > 0).all()
        few = case.opened.search(query[None], 5, rerank=settings)[0]
        assert few == hits[:5]


def test_true_stands_for_the_usual_settings(tmp_path):
    case = Case(tmp_path, "clustered")
    hits = case.opened.search(case.queries, 7, rerank=True)
    assert hits == case.opened.search(case.queries, 7, rerank=Reranking())
    assert [len(found) for found in hits] == [7] * QUERIES
    plain = case.opened.search(case.queries, 7)
    assert plain == case.opened.search(case.queries, 7, rerank=False)
    assert [[hit.id for hit in found] for found in hits] != [
        [hit.id for hit in found] for found in plain
    ]
    assert all(hit.score <= 0 for found in hits for hit in found)


def test_as_many_are_reordered_as_hits_are_asked_for(tmp_path):
    case = Case(tmp_path, "clustered", seed=1)
    few = Reranking(candidates=3)
    hits = case.opened.search(case.queries, 25, rerank=few)
    assert hits == case.opened.search(case.queries, 25, rerank=Reranking(candidates=25))
    (everything,) = case.opened.search(case.queries[:1], 1000, rerank=few)
    ids = [hit.id for hit in everything]
    assert sorted(ids) == list(range(len(case.opened)))
    expected = case.distances(case.queries[0], few)
    np.testing.assert_allclose([hit.score for hit in everything], -expected[ids], atol=1e-5)


def test_a_gallery_smaller_than_the_neighbourhood(tmp_path):
    case = Case(tmp_path, "clustered", rows=9)
    assert len(case.opened) < 10
    (hits,) = case.opened.search(case.queries[:1], rerank=True)
    expected = case.distances(case.queries[0], Reranking())
    np.testing.assert_allclose(
        [hit.score for hit in hits], -expected[[hit.id for hit in hits]], atol=1e-5
    )
    assert len(hits) == len(case.opened)


def test_queries_asked_together_share_look_ups_and_nothing_else(tmp_path, monkeypatch):
    case = Case(tmp_path, "duplicates", seed=2)
    asked = []
    search = reranked.search_exact
    monkeypatch.setattr(
        reranked,
        "search_exact",
        lambda shards, vectors, k: asked.append(len(vectors)) or search(shards, vectors, k),
    )
    settings = Reranking(k1=6, k2=2, candidates=10)
    alone = [case.opened.search(query[None], rerank=settings)[0] for query in case.queries]
    one_by_one = sum(asked)
    asked.clear()
    assert case.opened.search(case.queries, rerank=settings) == alone
    assert sum(asked) < one_by_one
    asked.clear()
    monkeypatch.setattr(reranked, "KEPT_BYTES", 0)
    assert case.opened.search(case.queries, rerank=settings) == alone
    assert sum(asked) >= one_by_one
    assert case.opened.search(np.empty((0, case.queries.shape[1])), rerank=settings) == []


@pytest.mark.parametrize(
    "setting", [{"candidates": 0}, {"k1": 0}, {"k2": 0}, {"weight": -0.1}], ids=str
)
def test_settings_that_mean_nothing_are_refused(setting):
    with pytest.raises(UserError, match=f"rerank: .*{next(iter(setting))}="):
        Reranking(**setting)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> tuple[Path, Path]:
    """A gallery of vectors around the embedding of a picture, and the picture."""
    folder = tmp_path_factory.mktemp("search")
    model = Folder.open(str(write_model(folder / "model")))
    picture, _ = write_pictures(folder)
    card = read_card(Path(model.root))
    embedder = Embedder(card, model.local(WEIGHTS), default_device())
    (own,) = embedder.embed_files([picture.read_bytes()], [None])
    noise = np.random.default_rng(0).standard_normal((60, len(own))) / np.sqrt(len(own))
    vectors = (own + noise).astype(np.float32)
    identity = [f"p{i % 5}" for i in range(60)]
    pq.write_table(embedding_table(vectors, identity=identity), folder / "e.parquet")
    made_by = {
        "name": card.model,
        "folder": model.uri,
        "weights_sha256": sha256_file(model.fs, model.path(WEIGHTS)),
        "card": card.to_dict(),
    }
    build_gallery(folder / "e.parquet", str(folder / "g"), model=made_by, shards=2)
    return folder / "g", picture


def test_the_command_reranks(place, tmp_path):
    built, picture = place
    embedder = open_query_model(gallery.open(built))
    query = embedder.embed_files([picture.read_bytes()], [None])
    command = ("search", built, picture, "--top-k", 4)
    for options, rerank in (
        ((), False),
        (("--rerank",), True),
        (("--rerank", "--candidates", 6), Reranking(candidates=6)),
    ):
        sheet = tmp_path / f"{len(options)}.png"
        (result,) = answer(*command, *options, "--picture", sheet)["results"]
        (hits,) = gallery.open(built).search(query, 4, rerank=rerank)
        assert result["reranked"] is bool(options)
        assert [hit["id"] for hit in result["hits"]] == [hit.id for hit in hits]
        np.testing.assert_allclose(
            [hit["score"] for hit in result["hits"]], [hit.score for hit in hits], atol=1e-5
        )
        assert sheet.read_bytes().startswith(b"\x89PNG")


def test_text_says_what_its_scores_are(place):
    built, picture = place
    command = ["search", str(built), str(picture), "--top-k", "2"]
    plain = CliRunner().invoke(reid, command, catch_exceptions=False).output.splitlines()
    assert plain[0] == str(picture)
    again = CliRunner().invoke(reid, [*command, "--rerank"], catch_exceptions=False)
    heading, first, _ = again.output.splitlines()
    assert heading == f"{picture}  (re-ranked: minus the final distance)"
    assert re.match(r" +1  -0\.\d{4}  id \d+  p\d  None  image-", first)


def test_the_sheet_says_so_below_the_query(place, tmp_path):
    built, picture = place
    hits = gallery.open(built).search(np.ones((1, gallery.open(built).embedding_dim)), 3)[0]
    sheets = []
    for reranked_too in (False, True):
        contact_sheet(tmp_path / "s.png", str(picture), hits, reranked=reranked_too)
        sheets.append(Image.open(tmp_path / "s.png").convert("RGB"))
    left, top, right, _ = ImageChops.difference(*sheets).getbbox()
    assert left >= GAP
    assert right <= sheets[0].width / 4
    assert top > TILE_HEIGHT


def test_candidates_go_with_rerank(place):
    built, picture = place
    with pytest.raises(UserError, match="--candidates 5 goes with --rerank"):
        answer("search", built, picture, "--candidates", 5)
