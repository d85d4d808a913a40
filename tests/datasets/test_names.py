"""Datasets by name: what each says of itself."""

from pathlib import Path

import pytest

from pipelines.datasets import find_dataset, list_datasets
from pipelines.datasets.manifest import SPLITS
from pipelines.retrieval.protocol import PROTOCOLS
from tests.datasets.layouts import refusal

PUBLISHED = [
    "market1501",
    "dukemtmc",
    "msmt17",
    "cuhk03",
    "veri776",
    "vehicleid",
    "cars196",
    "cub200",
    "university1652",
    "pku_reid",
]
GENERAL = ["identity_folders", "table", "drawn", "transfer"]
JOINED = [
    "market1501_to_dukemtmc",
    "dukemtmc_to_market1501",
    "msmt17_to_market1501",
    "without_market1501",
    "without_dukemtmc",
    "without_msmt17",
    "without_cuhk03",
]


def test_the_names() -> None:
    assert list(list_datasets()) == PUBLISHED + GENERAL + JOINED


def test_names_and_roots_are_asked_for() -> None:
    assert "did you mean market1501?" in refusal("market-1501", "/")
    assert "did you mean msmt17?" in refusal("msmt", "/")
    assert "data.root" in refusal("market1501", None)
    assert "dataset=table" in refusal("market1501", "s3://bucket/market")


@pytest.mark.parametrize("name", PUBLISHED + GENERAL + JOINED)
def test_what_a_dataset_says(name: str) -> None:
    dataset = list_datasets()[name]
    for text in (dataset.title, dataset.layout, dataset.terms):
        assert text
    texts = [dataset.title, dataset.layout, dataset.terms, dataset.source, dataset.protocol_note]
    texts += [variant.text for variant in dataset.variants.values()]
    for text in texts:
        assert "\n" not in text
        assert text == text.strip()
    assert dataset.protocol in PROTOCOLS
    assert dataset.protocol_note or name in GENERAL
    assert dataset.source or name in GENERAL


@pytest.mark.parametrize("name", PUBLISHED + GENERAL + JOINED)
def test_official_counts(name: str) -> None:
    variants = list_datasets()[name].variants
    first = next(iter(variants.values()))
    assert set(first.counts) == (set() if name in GENERAL else set(SPLITS))
    for variant in variants.values():
        assert set(variant.counts) <= set(SPLITS)
        for count in variant.counts.values():
            assert count.images is None or 0 < (count.identities or 1) <= count.images
        images = {split: count.images for split, count in variant.counts.items()}
        gallery = images.get("gallery")
        if gallery is not None:
            assert (variant.junk or 0) + (variant.distractors or 0) < gallery


@pytest.mark.parametrize("name", PUBLISHED + GENERAL + JOINED)
def test_variants_by_name(name: str) -> None:
    dataset = list_datasets()[name]
    assert find_dataset(name) == (dataset, dataset.default)
    for variant in dataset.variants:
        assert find_dataset(f"{name}:{variant}") == (dataset, variant)
        assert variant == "" or variant.replace("_", "").isalnum()
    text = refusal(f"{name}:nonesuch", "/")
    named = [variant for variant in dataset.variants if variant]
    assert f"no variant 'nonesuch'; {'there are' if named else f'{name} has none'}" in text
    assert all(f"{name}:{variant}" in text for variant in named)


@pytest.mark.parametrize("name", PUBLISHED + JOINED)
def test_a_root_that_is_not_there(name: str, tmp_path: Path) -> None:
    for variant in list_datasets()[name].variants:
        text = refusal(f"{name}:{variant}", tmp_path / "gone")
        assert text.startswith(f"{tmp_path / 'gone'}: no such folder")
        text = refusal(f"{name}:{variant}", tmp_path)
        assert text.startswith(str(tmp_path))
