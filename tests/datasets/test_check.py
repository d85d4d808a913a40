"""What lies on a disk against the official figures: counts, missing and extra files, damage,
copies."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.console import Reporter
from pipelines.datasets import Count
from pipelines.datasets.check import Report, check_dataset
from pipelines.datasets.check_images import find_copies
from pipelines.datasets.contract import PLAIN, Variant
from pipelines.datasets.manifest import SPLITS
from pipelines.datasets.reader import DATASETS
from pipelines.errors import UserError
from tests.datasets.layouts import MARKET

MARKET_FIGURES = Variant(
    counts={
        "train": Count(images=2, identities=1),
        "query": Count(images=2, identities=2),
        "gallery": Count(images=4, identities=2),
    },
    cameras=6,
    junk=1,
    distractors=1,
)
CUB = ["001.Albatross/a", "001.Albatross/b", "150.Pelican/a", "150.Pelican/b", "150.Pelican/c"]
CUB_FIGURES = Variant(
    counts={
        "train": Count(images=2, identities=1),
        "query": Count(images=1, identities=1),
        "gallery": Count(images=2, identities=1),
    }
)


def draw(number: int, kind: str = "JPEG") -> bytes:
    """An encoded image; no two numbers give the same."""
    shades = np.random.default_rng(number).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(shades).save(buffer, format=kind)
    return buffer.getvalue()


def fill(root: Path, names: list[str]) -> Path:
    """Each file with an image of its own."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(draw(number))
    return root


def check(name: str, root: Path, *, with_images: bool = True) -> Report:
    return check_dataset(name, str(root), Reporter(), with_images=with_images)


@pytest.fixture
def market(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Market-1501 with eight images, and as many in its official figures."""
    small = replace(DATASETS["market1501"], variants={PLAIN: MARKET_FIGURES})
    monkeypatch.setitem(DATASETS, "market1501", small)
    names = [f"{folder}/{name}" for folder, names in MARKET.items() for name in names]
    return fill(tmp_path / "market", names)


@pytest.fixture
def cub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CUB-200-2011 with five images, which are listed."""
    small = replace(DATASETS["cub200"], variants={PLAIN: CUB_FIGURES})
    monkeypatch.setitem(DATASETS, "cub200", small)
    root = fill(tmp_path / "cub", [f"images/{name}.jpg" for name in CUB])
    lines = {
        "images": [f"{n} {name}.jpg" for n, name in enumerate(CUB)],
        "image_class_labels": [f"{n} {int(name[:3])}" for n, name in enumerate(CUB)],
    }
    for name, texts in lines.items():
        (root / f"{name}.txt").write_text("\n".join(texts))
    return root


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Images of nobody's but one's own, with and without a camera in the name."""
    names = ["train/a/c1_0", "train/a/c2_0", "query/b/c1_0", "query/c/x"]
    names += ["gallery/b/c1_1", "gallery/b/c2_0", "gallery/c/y", "gallery/c/z"]
    return fill(tmp_path / "own", [f"{name}.jpg" for name in names])


def test_a_whole_set(market: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check("market1501", market)
    assert (report.ok, report.problems, report.notes) == (True, (), ())
    found = {
        scope: {what: (figure.found, figure.official) for what, figure in figures.items()}
        for scope, figures in report.counts.items()
    }
    assert found == {
        "train": {"images": (2, 2), "identities": (1, 1)},
        "query": {"images": (2, 2), "identities": (2, 2)},
        "gallery": {
            "images": (4, 4),
            "identities": (2, 2),
            "junk": (1, 1),
            "distractors": (1, 1),
        },
        "all": {"cameras": (6, 6)},
    }
    assert re.search(r"check: 8 images in ", capsys.readouterr().err)


def test_counts_that_are_not_the_official_ones(market: Path) -> None:
    (market / "bounding_box_train/0002_c1s1_000451_03.jpg").unlink()
    (market / "bounding_box_test/-1_c5s1_000001_00.jpg").unlink()
    (market / "bounding_box_test/0000_c4s2_000002_00.jpg").write_bytes(draw(90))
    (market / "bounding_box_test/0000_c4s2_000003_00.jpg").write_bytes(draw(91))
    (market / "query/0005_c1s1_000001_00.jpg").write_bytes(draw(92))
    report = check("market1501", market)
    assert report.problems == (
        "train: 1 image, official 2: 1 missing",
        "query: 3 images, official 2: 1 too many",
        "query: 3 identities, official 2: 1 too many",
        "gallery: 5 images, official 4: 1 too many",
        "gallery: 0 junk images, official 1: 1 missing",
        "gallery: 3 distractors, official 1: 2 too many",
        "5 cameras, official 6: 1 missing",
    )
    assert not report.ok


def test_thousands_are_told_apart(market: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = replace(MARKET_FIGURES, counts={"train": Count(images=12_936)})
    more = replace(DATASETS["market1501"], variants={PLAIN: variant})
    monkeypatch.setitem(DATASETS, "market1501", more)
    assert check("market1501", market).problems == (
        "train: 2 images, official 12,936: 12,934 missing",
    )


def test_a_listed_file_that_is_not_there(cub: Path) -> None:
    assert check("cub200", cub).ok
    (cub / "images" / "150.Pelican" / "c.jpg").unlink()
    assert check("cub200", cub).problems == (
        "gallery: 1 image, official 2: 1 missing",
        "1 listed file not there: images/150.Pelican/c.jpg",
    )
    for name in ("a", "b"):
        (cub / "images" / "001.Albatross" / f"{name}.jpg").unlink()
    (cub / "images" / "001.Albatross").rmdir()
    assert check("cub200", cub, with_images=False).problems == (
        "train: 0 images, official 2: 2 missing",
        "train: 0 identities, official 1: 1 missing",
        "gallery: 1 image, official 2: 1 missing",
        "3 listed files not there: images/150.Pelican/c.jpg, images/001.Albatross/a.jpg, "
        "images/001.Albatross/b.jpg",
    )


def test_more_than_a_few_are_counted(cub: Path) -> None:
    for name in CUB:
        (cub / "images" / f"{name}.jpg").unlink()
    report = check("cub200", cub)
    assert report.problems[-1].startswith("5 listed files not there: images/150.Pelican/b.jpg, ")
    assert report.problems[-1].endswith(", and 2 more")
    assert report.problems[-1].count(".jpg") == 3


def test_extra_files(cub: Path) -> None:
    folder = cub / "images" / "150.Pelican"
    (folder / "d.JPG").write_bytes(b"")
    (folder / "Thumbs.db").write_bytes(b"")
    (folder / ".hidden.jpg").write_bytes(b"")
    report = check("cub200", cub)
    assert report.ok
    assert report.notes == (
        f"1 extra image that nothing lists: {folder / 'd.JPG'}",
        "2 other files beside the images, passed over",
    )


def test_folders_behind_links_are_the_same(cub: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (cub / "images" / "150.Pelican").rename(elsewhere)
    (cub / "images" / "150.Pelican").symlink_to(elsewhere)
    report = check("cub200", cub)
    assert (report.ok, report.notes) == (True, ())
    (elsewhere / "b.jpg").unlink()
    (elsewhere / "d.jpg").write_bytes(draw(90))
    report = check("cub200", cub)
    assert report.problems[-1] == "1 listed file not there: images/150.Pelican/b.jpg"
    assert report.notes == (f"1 extra image that nothing lists: {elsewhere / 'd.jpg'}",)


def test_files_that_are_no_images(market: Path) -> None:
    cut = market / "query" / "0003_c1s6_015971_00.jpg"
    cut.write_bytes(cut.read_bytes()[:-150])
    (market / "bounding_box_train" / "0002_c1s1_000451_03.jpg").write_text("moved")
    report = check("market1501", market)
    assert len(report.problems) == 1
    assert report.problems[0].startswith(
        "2 files cannot be used as images: query/0003_c1s6_015971_00.jpg (cannot be decoded: "
    )
    assert report.problems[0].endswith(
        "), bounding_box_train/0002_c1s1_000451_03.jpg (not an image file)"
    )
    assert check("market1501", market, with_images=False).ok


def test_empty_files_are_no_copies(own: Path) -> None:
    for split in SPLITS:
        next((own / split).rglob("*.jpg")).write_bytes(b"")
    report = check("identity_folders", own)
    assert [problem.split(":")[0] for problem in report.problems] == [
        "3 files cannot be used as images"
    ]
    assert report.notes == ()


def copy(root: Path, source: str, target: str) -> None:
    (root / target).write_bytes((root / source).read_bytes())


def test_own_images_have_no_official_counts(own: Path) -> None:
    report = check("identity_folders", own)
    assert (report.problems, report.notes) == ((), ())
    figures = [figure for scope in report.counts.values() for figure in scope.values()]
    assert {figure.official for figure in figures} == {None}
    assert report.counts["gallery"]["images"].found == 4


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        (
            "train/a/c1_0.jpg",
            "query/c/x.jpg",
            "1 image of query or gallery lies byte for byte in train: "
            "query/c/x.jpg = train/a/c1_0.jpg",
        ),
        (
            "train/a/c1_0.jpg",
            "gallery/b/c1_1.jpg",
            "1 image of query or gallery lies byte for byte in train: "
            "gallery/b/c1_1.jpg = train/a/c1_0.jpg",
        ),
        (  # under another camera
            "query/b/c1_0.jpg",
            "gallery/b/c2_0.jpg",
            "1 image of query lies byte for byte in the gallery, under another identity or camera "
            "or an unknown camera: query/b/c1_0.jpg = gallery/b/c2_0.jpg",
        ),
        (  # under an unknown camera
            "query/c/x.jpg",
            "gallery/c/y.jpg",
            "query/c/x.jpg = gallery/c/y.jpg",
        ),
        (  # of another identity
            "query/b/c1_0.jpg",
            "gallery/c/y.jpg",
            "query/b/c1_0.jpg = gallery/c/y.jpg",
        ),
        (
            "gallery/b/c1_1.jpg",
            "gallery/c/y.jpg",
            "1 image lies byte for byte in the same split under another identity: "
            "gallery/c/y.jpg = gallery/b/c1_1.jpg",
        ),
    ],
)
def test_harmful_copies(source: str, target: str, says: str, own: Path) -> None:
    copy(own, source, target)
    report = check("identity_folders", own)
    assert len(report.problems) == 1
    assert report.problems[0].endswith(says)
    assert report.notes == ()


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        (
            "query/b/c1_0.jpg",
            "gallery/b/c1_1.jpg",
            "1 image of query lies byte for byte in the gallery, under the same identity and "
            "camera; the protocol market leaves it out, others do not: "
            "query/b/c1_0.jpg = gallery/b/c1_1.jpg",
        ),
        (
            "gallery/c/y.jpg",
            "gallery/c/z.jpg",
            "1 image lies byte for byte in the same split a second time, under the same identity: "
            "gallery/c/z.jpg = gallery/c/y.jpg",
        ),
    ],
)
def test_harmless_copies(source: str, target: str, says: str, own: Path) -> None:
    copy(own, source, target)
    report = check("identity_folders", own)
    assert report.ok
    assert report.notes == (says,)


def test_copies_of_a_set_as_it_was_published(market: Path) -> None:
    copy(
        market,
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_test/0000_c4s2_000001_00.jpg",
    )
    says = "1 image of query or gallery lies byte for byte in train: "
    report = check("market1501", market)
    assert report.ok
    assert [note.startswith(says) for note in report.notes] == [True]

    (market / "query" / "0004_c2s3_000010_00.jpg.jpg").unlink()
    report = check("market1501", market)
    assert [problem.startswith(says) for problem in report.problems] == [False, False, True]


def kinds_reference(rows: list[dict[str, object]], digests: list[bytes]) -> Counter[str]:
    """Every file beside every other."""
    kinds: Counter[str] = Counter()
    for row, digest in zip(rows, digests, strict=True):
        same = [
            other
            for other, theirs in zip(rows, digests, strict=True)
            if theirs == digest and other is not row
        ]
        splits = {other["split"] for other in same}
        if row["split"] != "train" and "train" in splits:
            kinds["in train"] += 1
        if row["split"] == "query" and "gallery" in splits:
            left_out = row["camera"] is not None and all(
                row["camera"] == other["camera"] and row["identity"] == other["identity"]
                for other in same
                if other["split"] == "gallery"
            )
            kinds["the same identity and camera" if left_out else "another identity or camera"] += 1
        before = [
            other
            for other in same
            if other["split"] == row["split"] and str(other["key"]) < str(row["key"])
        ]
        if before:
            first = min(before, key=lambda other: str(other["key"]))
            right = first["identity"] == row["identity"]
            kinds["a second time" if right else "the same split under another identity"] += 1
    return kinds


@pytest.mark.parametrize("seed", range(5))
def test_copies_by_a_slow_search(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = [
        {
            "key": f"{n:03}",
            "identity": f"p{random.integers(2)}",
            "camera": [None, "c1", "c2"][random.integers(3)],
            "split": SPLITS[random.integers(3)],
        }
        for n in range(80)
    ]
    digests = [bytes([random.integers(60)] * 32) for _ in rows]
    table = pa.Table.from_pylist(rows).append_column(
        "digest", pa.chunked_array([digests[:30], digests[30:]], pa.binary(32))
    )
    kinds = kinds_reference(rows, digests)
    copies = find_copies(table)
    assert len(copies) == len(kinds) >= 4
    for kind, number in kinds.items():
        (text,) = (found.text for found in copies if kind in found.text)
        assert int(text.split()[0]) == number


def test_a_table(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    """Files are those that the table lists, whatever their names; URIs are counted."""
    root = image_folder(identities=4)
    listed = sorted(path.relative_to(tmp_path).as_posix() for path in root.rglob("*.jpg"))
    (root / "p000" / "c1_0.jpg").rename(root / "p000" / ".c1_0")
    listed[0] = listed[0].replace("c1_0.jpg", ".c1_0")
    listed.append("s3://bucket/p000/c3_0.jpg")
    lines = [f"{uri},{uri.split('/')[-2]}" for uri in listed]
    table = tmp_path / "images.csv"
    table.write_text("\n".join(["uri,identity", *lines]))
    report = check("table", table)
    assert report.ok
    assert report.notes == ("1 image listed by URIs, not looked at",)
    assert sum(report.counts[split]["images"].found for split in SPLITS) == 17

    lines = [f"s3://bucket/{n % 4}/{n}.jpg,{n % 4}" for n in range(12)]
    table.write_text("\n".join(["uri,identity", *lines]))
    report = check("table", table)
    assert report.ok
    assert report.notes == ("12 images listed by URIs, not looked at",)


def test_without_images(own: Path) -> None:
    copy(own, "train/a/c1_0.jpg", "query/c/x.jpg")
    report = check("identity_folders", own, with_images=False)
    assert report.ok
    assert report.notes == ("images were not opened: damage and copies were not looked for",)


def test_refuses(tmp_path: Path, own: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean market1501\?"):
        check("market", tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        check("market1501", tmp_path / "gone")
    (own / "query" / "stray.jpg").write_bytes(draw(0))
    with pytest.raises(UserError, match="stray.jpg: lies outside any identity's folder"):
        check("identity_folders", own)


def test_market(data_root: Path) -> None:
    report = check("market1501", data_root, with_images=False)
    assert report.ok
    assert report.counts["gallery"]["junk"].found == 3_819


def test_pku_holds_queries_in_its_gallery(data_root: Path) -> None:
    report = check("pku_reid", data_root)
    assert report.ok
    asked, repeated = report.notes
    assert asked.startswith("17 images of query lie byte for byte in the gallery, under the same ")
    assert repeated.startswith("1 image lies byte for byte in the same split a second time")
    assert repeated.endswith("train/085/01_5.png = train/085/01_4.png")
