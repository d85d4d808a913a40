"""DukeMTMC-reID: names, people nobody asks for, and what is said of the withdrawal."""

import re
from pathlib import Path

import pytest

from pipelines.datasets import list_datasets, read_dataset
from tests.datasets.layouts import counts, identities, refusal, touch

DUKE = {
    "bounding_box_train": ["0001_c2_f0046182.jpg", "0001_c5_f0051341.jpg"],
    "query": ["0005_c2_f0046985.jpg", "0033_c1_f0057706.jpg.jpg"],
    "bounding_box_test": [
        "0005_c5_f0051781.jpg",
        "0033_c8_f0000001.JPG",
        "7139_c2_f0160815.jpg",
        "7139_c2_f0160935.jpg",
    ],
}
SPLIT_OF = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}


def duke_reference(root: Path) -> list[dict[str, object]]:
    """One file after the other, by the published regular expression."""
    asked_for = {path.name[:4] for path in (root / "query").iterdir()}
    rows = []
    for folder, split in SPLIT_OF.items():
        for path in (root / folder).iterdir():
            match = re.match(r"(\d{4})_c([1-8])_f(\d{7})\.", path.name)
            assert match, path
            pid, camera, frame = match.groups()
            unasked = split == "gallery" and pid not in asked_for
            rows.append(
                {
                    "key": f"{folder}/{path.name}",
                    "uri": str(path),
                    "identity": f"dukemtmc/{pid}",
                    "camera": f"c{camera}",
                    "view": None,
                    "time": int(frame),
                    "domain": "dukemtmc",
                    "split": split,
                    "role": "distractor" if unasked else "normal",
                }
            )
    return sorted(rows, key=lambda row: (row["split"], row["identity"], row["key"]))


@pytest.mark.parametrize("name", ["DukeMTMC-reID", "dukemtmc"])
def test_rows(name: str, tmp_path: Path) -> None:
    root = touch(tmp_path / name, DUKE)
    expected = duke_reference(root)
    touch(root, {"query": ["Thumbs.db", "readme.txt"]})
    manifest = read_dataset("dukemtmc", str(root))
    assert manifest.to_pylist() == expected
    assert read_dataset("dukemtmc", str(tmp_path)).equals(manifest)


def test_people_nobody_asks_for_are_distractors(tmp_path: Path) -> None:
    manifest = read_dataset("dukemtmc", str(touch(tmp_path, DUKE)))
    assert counts(manifest) == {"train": 2, "query": 2, "gallery": 4}
    assert identities(manifest, "train") == {"dukemtmc/0001"}
    assert identities(manifest, "gallery") == {"dukemtmc/0005", "dukemtmc/0033"}
    roles = {row["key"]: row["role"] for row in manifest.to_pylist()}
    assert {key for key, role in roles.items() if role != "normal"} == {
        "bounding_box_test/7139_c2_f0160815.jpg",
        "bounding_box_test/7139_c2_f0160935.jpg",
    }
    assert set(roles.values()) == {"normal", "distractor"}


@pytest.mark.parametrize(
    "name", ["-1_c1_f0000001.jpg", "0001_c2s1_000151_01.jpg", "0001_c2_0046182.jpg", "1.png"]
)
def test_refuses_names(name: str, tmp_path: Path) -> None:
    root = touch(touch(tmp_path, DUKE), {"bounding_box_test": [name]})
    text = refusal("dukemtmc", root)
    assert text.startswith(str(root / "bounding_box_test" / name))
    assert "PPPP_cC_fNNNNNNN.jpg" in text


def test_refuses_folders(tmp_path: Path) -> None:
    assert "holds none of bounding_box_train, query" in refusal("dukemtmc", tmp_path)
    root = touch(tmp_path / "duke", {name: DUKE[name] for name in ("query", "bounding_box_test")})
    text = refusal("dukemtmc", root)
    assert text.startswith(f"{root / 'bounding_box_train'}: no such folder")


def test_the_withdrawal_is_stated() -> None:
    duke = list_datasets()["dukemtmc"]
    assert "withdrawn by its owners in 2019" in duke.terms
    assert "never fetched by this program" in duke.terms
    assert "withdrawn" in duke.title
