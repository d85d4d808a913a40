"""Layouts in miniature, and what tests ask of their manifests."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipelines.datasets import read_dataset
from pipelines.errors import UserError

MARKET = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c2s1_000301_01.jpg"],
    "query": ["0003_c1s6_015971_00.jpg", "0004_c2s3_000010_00.jpg.jpg"],
    "bounding_box_test": [
        "0003_c3s6_015971_00.jpg",
        "0004_c6s1_999999_12.JPG",
        "0000_c4s2_000001_00.jpg",
        "-1_c5s1_000001_00.jpg",
    ],
}


def touch(root: Path, files: dict[str, list[str]]) -> Path:
    for folder, names in files.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (root / folder / name).touch()
    return root


def refusal(name: str, root: Path | str | None) -> str:
    with pytest.raises(UserError) as caught:
        read_dataset(name, None if root is None else str(root))
    text = str(caught.value)
    assert "\n" not in text
    return text


def counts(manifest: pa.Table) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(manifest["split"]).to_pylist()}


def identities(manifest: pa.Table, split: str) -> set[str]:
    known = manifest.filter(
        pc.and_(pc.equal(manifest["split"], split), pc.equal(manifest["role"], "normal"))
    )
    return set(known["identity"].to_pylist())
