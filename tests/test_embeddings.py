"""Embedding files: every layout that is promised is read, and what is wrong is named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.errors import UserError
from pipelines.retrieval import load_embeddings
from tests.embedding_files import embedding_table, sign_vectors

COUNT = 50


@pytest.fixture
def table():
    rng = np.random.default_rng(7)
    split = ["query"] * 10 + ["gallery"] * (COUNT - 10)
    return embedding_table(
        rng.standard_normal((COUNT, 24)).astype(np.float32),
        identity=[f"x{i % 5}" for i in range(COUNT)],
        camera=[None if i % 3 == 0 else i % 3 for i in range(COUNT)],
        split=split,
    )


def replace(table: pa.Table, name: str, values: object) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def with_vectors(table: pa.Table, vectors_ND: np.ndarray) -> pa.Table:
    flat = pa.array(vectors_ND.reshape(-1))
    return replace(table, "embedding", pa.FixedSizeListArray.from_arrays(flat, vectors_ND.shape[1]))


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.stack(table["embedding"].to_numpy(zero_copy_only=False))


def test_vectors_become_unit_float32(tmp_path, table):
    pq.write_table(table, tmp_path / "e.parquet")
    found = load_embeddings(tmp_path / "e.parquet")
    raw = vectors_of(table).astype(np.float64)
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(
        found.vectors, raw / np.linalg.norm(raw, axis=1, keepdims=True), atol=1e-7
    )


def test_float16_is_scaled_at_float32(tmp_path, table):
    half = (300 * vectors_of(table)).astype(np.float16)
    pq.write_table(with_vectors(table, half), tmp_path / "e.parquet")
    raw = half.astype(np.float64)
    np.testing.assert_allclose(
        load_embeddings(tmp_path / "e.parquet").vectors,
        raw / np.linalg.norm(raw, axis=1, keepdims=True),
        atol=1e-7,
    )


def test_parts_row_groups_and_addresses_do_not_matter(tmp_path, table):
    whole = tmp_path / "whole.parquet"
    pq.write_table(table, whole, row_group_size=7)
    parts = tmp_path / "parts"
    parts.mkdir()
    for number, (start, stop) in enumerate([(0, 20), (20, 20), (20, 33), (33, COUNT)]):
        pq.write_table(table.slice(start, stop - start), parts / f"part-{number:05d}.parquet")
    (parts / "manifest.json").write_text("{}")
    sources = (whole, f"file://{whole}", parts, sorted(parts.glob("*.parquet")))
    first, *others = [load_embeddings(source) for source in sources]
    for other in others:
        assert other.rows.equals(first.rows)
        assert np.array_equal(other.vectors, first.vectors)
        assert other.fingerprint == first.fingerprint


def test_only_the_asked_splits_are_read(tmp_path, table):
    pq.write_table(table, tmp_path / "e.parquet", row_group_size=7)
    everything = load_embeddings(tmp_path / "e.parquet")
    gallery = load_embeddings(tmp_path / "e.parquet", splits=["gallery"])
    assert len(gallery) == COUNT - 10
    chosen = np.flatnonzero(np.array(everything.rows["split"].to_pylist()) == "gallery")
    assert np.array_equal(gallery.vectors, everything.vectors_of(chosen))
    assert gallery.rows.equals(everything.rows.take(chosen))


def test_the_fingerprint_sees_a_changed_vector(tmp_path, table):
    pq.write_table(table, tmp_path / "a.parquet")
    changed = vectors_of(table).copy()
    changed[-1, 0] += 1
    pq.write_table(with_vectors(table, changed), tmp_path / "b.parquet")
    prints = {load_embeddings(tmp_path / name).fingerprint for name in ("a.parquet", "b.parquet")}
    assert len(prints) == 2


@pytest.mark.parametrize(
    "kind", [pa.int16(), pa.string(), pa.float64(), pa.dictionary(pa.int32(), pa.string())]
)
def test_cameras_of_any_type_are_the_same_labels(tmp_path, table, kind):
    labels = [None if i % 3 == 0 else str(i % 3) for i in range(COUNT)]
    through = pa.array([label and int(label) for label in labels], pa.int64())
    column = pa.array(labels).cast(kind) if pa.types.is_dictionary(kind) else through.cast(kind)
    pq.write_table(replace(table, "camera", column), tmp_path / "e.parquet")
    assert load_embeddings(tmp_path / "e.parquet").rows["camera"].to_pylist() == labels


def test_missing_camera_and_role_mean_unknown_and_normal(tmp_path, table):
    pq.write_table(table.drop_columns("camera"), tmp_path / "e.parquet")
    rows = load_embeddings(tmp_path / "e.parquet").rows
    assert set(rows["camera"].to_pylist()) == {None}
    assert set(rows["role"].to_pylist()) == {"normal"}


@pytest.mark.parametrize(
    ("value", "what"), [(0.0, "all zeros"), (np.nan, "not finite"), (np.inf, "not finite")]
)
def test_a_bad_vector_is_named_by_its_key(tmp_path, table, value, what):
    vectors = vectors_of(table).copy()
    vectors[31] = value
    pq.write_table(with_vectors(table, vectors), tmp_path / "e.parquet", row_group_size=9)
    with pytest.raises(UserError, match=f"image-00031 is {what}"):
        load_embeddings(tmp_path / "e.parquet")


def test_a_null_number_is_not_finite_and_a_null_vector_is_no_parquet_to_read(tmp_path, table):
    lists = [row.tolist() for row in vectors_of(table)]
    lists[12][3] = None
    for missing, message in ((lists[12], "image-00012 is not finite"), (None, r"e\.parquet")):
        lists[12] = missing
        column = pa.array(lists, pa.list_(pa.float32(), 24))
        pq.write_table(replace(table, "embedding", column), tmp_path / "e.parquet")
        with pytest.raises(UserError, match=message):
            load_embeddings(tmp_path / "e.parquet")


def test_tiny_and_huge_vectors_keep_their_direction(tmp_path, table):
    vectors = sign_vectors(np.random.default_rng(0), COUNT)
    scaled = vectors * np.where(np.arange(COUNT) % 2, 1e-30, 1e30)[:, None].astype(np.float32)
    pq.write_table(with_vectors(table, scaled), tmp_path / "e.parquet")
    np.testing.assert_allclose(load_embeddings(tmp_path / "e.parquet").vectors, vectors / 8)


def bad_files(table: pa.Table):
    lists = pa.array([row.tolist() for row in vectors_of(table)])
    yield "no-column", table.drop_columns("identity"), "lacks the column\\(s\\) identity"
    yield "free-lists", replace(table, "embedding", lists), "not a fixed-size list of float16"
    double = with_vectors(table, vectors_of(table).astype(np.float64))
    yield "double", double, "fixed_size_list.*double"
    roles = pa.array(["bystander"] * COUNT)
    yield "role", table.append_column("role", roles), "role 'bystander'.*normal, distractor, junk"
    yield "camera", replace(table, "camera", pa.array([0.5] * COUNT)), "column camera"
    keys = ["again"] * 2 + [f"k{i}" for i in range(COUNT - 2)]
    yield "key", replace(table, "key", pa.array(keys)), "key again stands 2 times in split query"
    keys = [None, *keys[1:]]
    yield "no-key", replace(table, "key", pa.array(keys)), "1 embeddings have no key"


@pytest.mark.parametrize("number", range(7))
def test_a_bad_file_is_refused_with_the_reason(tmp_path, table, number):
    name, bad, message = list(bad_files(table))[number]
    pq.write_table(bad, tmp_path / f"{name}.parquet")
    with pytest.raises(UserError, match=message):
        load_embeddings(tmp_path / f"{name}.parquet")


def test_parts_of_two_models_are_refused(tmp_path, table):
    pq.write_table(table.slice(0, 20), tmp_path / "part-00000.parquet")
    other = with_vectors(table, sign_vectors(np.random.default_rng(0), COUNT)).slice(20)
    pq.write_table(other, tmp_path / "part-00001.parquet")
    with pytest.raises(UserError, match="embeddings of 24 and 64 dimensions"):
        load_embeddings(tmp_path)


def test_places_without_embeddings_are_named(tmp_path, table):
    with pytest.raises(UserError, match=r"no embeddings at .*nowhere"):
        load_embeddings(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no part-\*\.parquet"):
        load_embeddings(tmp_path)
    (tmp_path / "e.parquet").write_text("not parquet")
    with pytest.raises(UserError, match=r"cannot read .*e\.parquet as Parquet"):
        load_embeddings(tmp_path / "e.parquet")


def test_a_file_cut_in_half_is_named(tmp_path, table):
    pq.write_table(table, tmp_path / "e.parquet")
    data = (tmp_path / "e.parquet").read_bytes()
    (tmp_path / "e.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cannot read .*e\.parquet"):
        load_embeddings(tmp_path / "e.parquet")
