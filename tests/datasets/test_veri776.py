"""VeRi-776: lists, labels in gb2312, queries in the gallery too, the owners' judgements."""

import re
from pathlib import Path

import pytest

from pipelines.datasets import MANIFEST_SCHEMA, read_dataset
from pipelines.datasets.veri776_judgements import read_judgements
from pipelines.errors import UserError
from tests.datasets.layouts import counts, identities, refusal, touch

TRAIN = ["0001_c001_00016450_0.jpg", "0003_c020_00000005_12.jpg"]
QUERY = ["0776_c007_00000600_0.jpg", "0002_c002_00030600_0.jpg"]
GALLERY = [
    "0776_c005_00000510_0.jpg",
    "0776_c007_00000600_0.jpg",
    "0002_c002_00030600_0.jpg",
    "0002_c002_00030605_1.jpg",
    "0002_c011_00030700_0.jpg",
]
FILES = {"image_train": TRAIN, "image_query": QUERY, "image_test": GALLERY}
LISTS = {"name_train.txt": TRAIN, "name_query.txt": QUERY, "name_test.txt": GALLERY}
SPLIT_OF = {"image_train": "train", "image_query": "query", "image_test": "gallery"}


def veri(root: Path, *, lists: bool = True) -> Path:
    touch(root, FILES)
    if lists:
        for name, lines in LISTS.items():
            (root / name).write_bytes("".join(f"{line}\r\n" for line in lines).encode())
    return root


def labels(names: list[str], *, text: str = "车辆", encoding: str = "gb2312") -> bytes:
    items = "".join(
        f'<Item imageName="{name}" vehicleID="{name[:4]}" cameraID="{name[5:9]}" '
        f'colorID="1" typeID="4" note="{text}"/>'
        for name in names
    )
    return (
        '<?xml version="1.0" encoding="gb2312"?>\n'
        f'<TrainingImages Version="1.0"><Items number="{len(names)}">{items}</Items>'
        f"</TrainingImages><!-- {text} -->"
    ).encode(encoding)


def reference(root: Path) -> list[dict[str, object]]:
    """One file after the other, by the published regular expression."""
    rows = []
    for folder, split in SPLIT_OF.items():
        for path in (root / folder).glob("*.jpg"):
            match = re.match(r"(\d{4})_c(\d{3})_(\d{8})_\d+\.jpg$", path.name)
            assert match, path
            vehicle, camera, time = match.groups()
            rows.append(
                {
                    "key": f"{folder}/{path.name}",
                    "uri": str(path),
                    "identity": f"veri776/{vehicle}",
                    "camera": f"c{int(camera)}",
                    "view": None,
                    "time": int(time),
                    "domain": "veri776",
                    "split": split,
                    "role": "normal",
                }
            )
    return sorted(rows, key=lambda row: (row["split"], row["identity"], row["key"]))


@pytest.mark.parametrize("lists", [True, False])
def test_rows(lists: bool, tmp_path: Path) -> None:
    root = veri(tmp_path / "VeRi", lists=lists)
    touch(root, {"image_test": ["Thumbs.db"]})
    manifest = read_dataset("veri776", str(tmp_path))
    assert manifest.schema == MANIFEST_SCHEMA
    assert manifest.to_pylist() == reference(root)
    assert read_dataset("veri776", str(root)).equals(manifest)
    assert counts(manifest) == {"train": 2, "query": 2, "gallery": 5}
    assert identities(manifest, "query") == identities(manifest, "gallery")


def test_a_list_counts_and_not_the_folder(tmp_path: Path) -> None:
    root = veri(tmp_path)
    touch(root, {"image_train": ["0099_c001_00000001_0.jpg", "holiday.jpg"]})
    (root / "image_train" / TRAIN[0]).unlink()
    manifest = read_dataset("veri776", str(root))
    assert identities(manifest, "train") == {"veri776/0001", "veri776/0003"}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [("车辆", "gb2312"), ("車輛", "gb18030"), ("车辆", "utf-8"), ("车辆", "utf-8-sig")],
)
def test_labels_in_every_encoding_that_they_come_in(
    text: str, encoding: str, tmp_path: Path
) -> None:
    root = veri(tmp_path)
    plain = read_dataset("veri776", str(root))
    (root / "train_label.xml").write_bytes(labels(TRAIN, text=text, encoding=encoding))
    (root / "test_label.xml").write_bytes(labels(GALLERY, text=text, encoding=encoding))
    assert read_dataset("veri776", str(root)).equals(plain)
    other = labels(GALLERY, text=text, encoding=encoding).replace(b'"c011"', b'"c012"')
    (root / "test_label.xml").write_bytes(other)
    message = refusal("veri776", root)
    assert message.startswith(str(root / "test_label.xml"))
    assert "0002_c011_00030700_0.jpg as vehicle '0002' of camera 'c012'" in message


BOMB = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (labels(TRAIN).replace(b'"0003"', b'"0004"'), "as vehicle '0004' of camera 'c020'"),
        (labels(TRAIN).replace(b' vehicleID="0001"', b""), "as vehicle '' of camera 'c001'"),
        (labels(["car.jpg"]), "labels 'car.jpg', which is not named VVVV_cCCC_TTTTTTTT_I.jpg"),
        (labels([]), "labels no image"),
        (labels(TRAIN)[:200], "is no XML"),
        (b"", "is no XML"),
        (b"\xff\xfe<", "is neither UTF-8 nor gb2312"),
        (labels(TRAIN).replace(b"?>\n", b"?>" + BOMB), "declares a document type"),
        (labels(TRAIN).replace(b'"gb2312"', b'"klingon"').replace(b'"0001"', b'"1"'), "'1'"),
    ],
)
def test_refuses_labels(text: bytes, says: str, tmp_path: Path) -> None:
    root = veri(tmp_path)
    (root / "train_label.xml").write_bytes(text)
    message = refusal("veri776", root)
    assert message.startswith(str(root / "train_label.xml"))
    assert says in message


def test_refuses_names(tmp_path: Path) -> None:
    root = veri(tmp_path / "a", lists=False)
    touch(root, {"image_query": ["0002_c2_00030600_0.jpg"]})
    message = refusal("veri776", root)
    assert message.startswith(str(root / "image_query/0002_c2_00030600_0.jpg"))
    assert "VVVV_cCCC_TTTTTTTT_I.jpg" in message
    root = veri(tmp_path / "b")
    (root / "name_test.txt").write_text(f"{GALLERY[0]}\n../{GALLERY[1]}\n")
    assert "line 2 is '../0776" in refusal("veri776", root)
    (root / "name_test.txt").write_text(f"{GALLERY[0]}\n{GALLERY[0]}\n")
    assert "stands for more than one image" in refusal("veri776", root)


def test_refuses_folders(tmp_path: Path) -> None:
    assert "holds none of image_train" in refusal("veri776", tmp_path)
    root = touch(tmp_path / "two", {name: FILES[name] for name in ("image_train", "image_test")})
    assert refusal("veri776", root).startswith(f"{root / 'image_query'}: no such folder")


GOOD = [[0], [4]]
JUNK = [[1], [2, 3]]


def write_judgements(root: Path, form: str, good: list[list[int]], junk: list[list[int]]) -> None:
    """As the archive has them: a blank after the last word of a line."""
    for name, lines in (("gt", good), ("jk", junk)):
        words = [
            "".join(f"{GALLERY[n]} " if form == "image" else f"{n + 1} " for n in line)
            for line in lines
        ]
        (root / f"{name}_{form}.txt").write_text("".join(f"{line}\n" for line in words))


@pytest.mark.parametrize("form", ["image", "index"])
@pytest.mark.parametrize(("good", "junk"), [(GOOD, JUNK), ([[0], []], [[], []]), ([[], [4]], JUNK)])
def test_judgements(
    form: str, good: list[list[int]], junk: list[list[int]], tmp_path: Path
) -> None:
    root = veri(tmp_path / "VeRi")
    write_judgements(root, form, good, junk)
    keys = [f"image_test/{name}" for name in GALLERY]
    expected = [
        {
            "query": f"image_query/{QUERY[n]}",
            "good": [keys[place] for place in good[n]],
            "junk": [keys[place] for place in junk[n]],
        }
        for n in range(len(QUERY))
    ]
    found = read_judgements(tmp_path)
    assert found.to_pylist() == expected
    in_manifest = set(read_dataset("veri776", str(tmp_path))["key"].to_pylist())
    assert {row["query"] for row in expected} | set(keys) <= in_manifest


def test_names_are_taken_before_places(tmp_path: Path) -> None:
    root = veri(tmp_path)
    write_judgements(root, "index", [[1], [1]], [[2], [2]])
    write_judgements(root, "image", GOOD, JUNK)
    assert read_judgements(root)["good"].to_pylist()[0] == [f"image_test/{GALLERY[0]}"]


def judgements_refusal(root: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_judgements(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("gt_image.txt", f"{GALLERY[0]}\n0009_c001_00000001_0.jpg\n", "line 2 lists '0009_c001"),
        ("jk_image.txt", f"{GALLERY[1]}\n", "has 1 lines for the 2 queries"),
        ("jk_image.txt", "a\nb\nc\n", "has 3 lines for the 2 queries"),
        ("jk_image.txt", f"{GALLERY[0]}\n\n", f"image_test/{GALLERY[0]} is judged twice"),
        ("jk_image.txt", f"{GALLERY[1]} {GALLERY[1]}\n\n", "judged twice for the query of line 1"),
        ("name_query.txt", "", "lists nothing"),
    ],
)
def test_refuses_judgements(name: str, text: str, says: str, tmp_path: Path) -> None:
    root = veri(tmp_path)
    write_judgements(root, "image", GOOD, JUNK)
    (root / name).write_text(text)
    message = judgements_refusal(root)
    assert message.startswith(str(root / name))
    assert says in message


@pytest.mark.parametrize("place", ["0", "6", "-1", "1.0"])
def test_refuses_places_outside_the_gallery(place: str, tmp_path: Path) -> None:
    root = veri(tmp_path)
    write_judgements(root, "index", GOOD, JUNK)
    (root / "gt_index.txt").write_text(f"1\n5 {place}\n")
    assert f"line 2 lists '{place}'" in judgements_refusal(root)


def test_refuses_judgements_without_their_lists(tmp_path: Path) -> None:
    root = veri(tmp_path)
    assert "gt_image.txt: no such file, nor gt_index.txt" in judgements_refusal(root)
    write_judgements(root, "image", GOOD, JUNK)
    (root / "jk_image.txt").unlink()
    assert judgements_refusal(root).startswith(f"{root / 'jk_image.txt'}: no such file")
    (root / "name_test.txt").unlink()
    assert judgements_refusal(root).startswith(f"{root / 'name_test.txt'}: no such file")
