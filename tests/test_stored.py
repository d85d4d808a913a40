"""Embeddings left in their files are the embeddings that are held."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.retrieval import Settings, evaluate, load_embeddings, open_embeddings
from pipelines.retrieval.embeddings import BATCH_ROWS
from pipelines.retrieval.stored import StoredVectors
from pipelines.retrieval.vectors import HeldVectors
from tests.embedding_files import embedding_table, random_table

SPLITS = ("query", "gallery")


def write_parts(folder: Path, table: pa.Table, cuts: list[int], *, group: int) -> Path:
    """The table in files, in row groups of `group` rows."""
    folder.mkdir(exist_ok=True)
    ends = [0, *cuts, len(table)]
    for number, (low, high) in enumerate(pairwise(ends)):
        part = table.slice(low, high - low)
        pq.write_table(part, folder / f"part-{number:05d}.parquet", row_group_size=group)
    return folder


def mixed_table(seed: int = 0) -> pa.Table:
    """Three splits in no order; of one of them nothing is asked."""
    table = random_table(seed)
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((60, 64)).astype(np.float32)
    others = embedding_table(
        vectors,
        identity=["t"] * 60,
        camera=["c1"] * 60,
        split="train",
        role=["normal"] * 60,
        key=[f"t{i}" for i in range(60)],
    ).select(table.column_names)
    both = pa.concat_tables([table, others])
    return both.take(rng.permutation(len(both)))


@pytest.fixture(params=[([], 1000), ([100], 1000), ([1, 2, 150], 7), ([0, 40, 40, 249], 13)])
def folder(request, tmp_path) -> Path:
    cuts, group = request.param
    return write_parts(tmp_path / "parts", mixed_table(), cuts, group=group)


def test_rows_vectors_and_fingerprint_are_the_same(folder):
    held = load_embeddings(folder, splits=SPLITS)
    stored = open_embeddings(folder, splits=SPLITS)
    assert stored.rows.equals(held.rows)
    assert (len(stored.rows), stored.dim) == (190, 64)
    assert stored.fingerprint == held.fingerprint
    rng = np.random.default_rng(0)
    for count in (0, 1, 2, 60, 190):
        index = np.sort(rng.choice(190, count, replace=False))
        assert np.array_equal(stored.vectors_of(index), held.vectors_of(index))
        assert np.array_equal(stored.vectors_of(index), held.vectors[index])
    run = np.arange(17, 120)
    assert np.shares_memory(held.vectors_of(run), held.vectors)


@pytest.mark.parametrize("width", [1, 3, 64, 10_000])
def test_blocks_are_the_rows_in_order(folder, width):
    held = load_embeddings(folder, splits=SPLITS)
    index = np.flatnonzero(np.arange(190) % 3 != 1)
    source = open_embeddings(folder, splits=SPLITS, hold_mb=0).source_of(index)
    assert isinstance(source, StoredVectors)
    assert len(source) == len(index)
    blocks = [(first, block.copy()) for first, block in source.blocks(width)]
    assert [first for first, _ in blocks] == list(range(0, len(index), width))
    assert np.array_equal(np.concatenate([block for _, block in blocks]), held.vectors[index])


@pytest.mark.parametrize(("low", "high"), [(0, 127), (0, 1), (5, 90), (99, 100), (126, 127)])
def test_a_part_keeps_its_numbers_over_the_borders_of_files(folder, low, high):
    held = load_embeddings(folder, splits=SPLITS)
    index = np.flatnonzero(np.arange(190) % 3 != 1)
    whole = open_embeddings(folder, splits=SPLITS, hold_mb=0).source_of(index)
    for source in (whole, HeldVectors(held.vectors[index])):
        part = source.part(low, high)
        assert len(part) == high - low
        blocks = [(first, block.copy()) for first, block in part.blocks(10)]
        assert [first for first, _ in blocks] == list(range(low, high, 10))
        found = np.concatenate([block for _, block in blocks])
        assert np.array_equal(found, held.vectors[index[low:high]])


def test_a_gallery_is_held_up_to_its_size(tmp_path):
    rng = np.random.default_rng(0)
    table = embedding_table(
        rng.standard_normal((4096, 64)).astype(np.float32), identity=["x"] * 4096
    )
    path = write_parts(tmp_path, table, [], group=5000)
    for rows, hold_mb, kind in ((4096, 1, HeldVectors), (4096, 0, StoredVectors)):
        stored = open_embeddings(path, splits=("gallery",), hold_mb=hold_mb)
        assert isinstance(stored.source_of(np.arange(rows)), kind)
    wide = embedding_table(
        rng.standard_normal((4097, 64)).astype(np.float32), identity=["x"] * 4097
    )
    path = write_parts(tmp_path / "wide", wide, [], group=5000)
    stored = open_embeddings(path, splits=("gallery",), hold_mb=1)
    assert isinstance(stored.source_of(np.arange(4097)), StoredVectors)


@pytest.mark.parametrize("protocol", ["market", "leave_one_out", "vehicleid", "latf_legacy"])
def test_figures_are_the_same_wherever_the_vectors_are(folder, protocol):
    how = Settings(protocol=protocol, draws=2, resamples=20, memory_mb=0)
    held = load_embeddings(folder, splits=SPLITS)
    found = [
        evaluate(embeddings, how)
        for embeddings in (held, open_embeddings(folder, splits=SPLITS, hold_mb=0))
    ]
    for name in ("metrics", "cmc", "spread", "intervals", "by_camera", "protocol", "lists"):
        assert getattr(found[0], name) == getattr(found[1], name), name


def test_a_batch_that_ends_inside_a_row_group(tmp_path):
    count = BATCH_ROWS + 5
    vectors = np.random.default_rng(0).standard_normal((count, 2)).astype(np.float32)
    path = write_parts(tmp_path, embedding_table(vectors, identity=["x"] * count), [], group=count)
    stored = open_embeddings(path, splits=("gallery",), hold_mb=0)
    index = np.array([0, BATCH_ROWS - 1, BATCH_ROWS, count - 1])
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.allclose(stored.vectors_of(index), unit[index], atol=1e-6)
    assert sum(len(block) for _, block in stored.source_of(np.arange(count)).blocks(999)) == count


def test_what_is_wrong_in_a_file_is_told_when_it_is_read(tmp_path):
    vectors = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)
    vectors[13] = np.nan
    path = write_parts(tmp_path, embedding_table(vectors, identity=["x"] * 20), [6], group=4)
    stored = open_embeddings(path, splits=("gallery",), hold_mb=0)
    assert stored.vectors_of(np.arange(13)).shape == (13, 8)
    with pytest.raises(UserError, match=r"embedding of image-00013 is not finite"):
        stored.vectors_of(np.arange(20))
    with pytest.raises(UserError, match=r"key image-00000 stands 2 times in split gallery"):
        open_embeddings([path, path], splits=("gallery",))
    with pytest.raises(UserError, match=r"no embeddings at .*nowhere"):
        open_embeddings(tmp_path / "nowhere", splits=("gallery",))


def test_no_row_of_the_splits(folder):
    none = open_embeddings(folder, splits=("probe",))
    assert len(none.rows) == 0
    assert none.vectors_of(np.empty(0, dtype=np.int64)).shape == (0, 64)
    with pytest.raises(UserError, match="no rows with split='query'"):
        evaluate(none)
