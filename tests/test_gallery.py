"""The gallery: exact whatever the shards, whole whatever kills the build, clear when damaged."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import faiss
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.gallery as gallery
from pipelines.errors import UserError
from pipelines.gallery import Gallery, build_gallery, build_shard, verify_gallery
from pipelines.gallery.exact import search_exact
from pipelines.gallery.shard import Shard
from tests.embedding_files import embedding_table, sign_vectors

DIM = 64
COUNT = 300
MODEL = {"name": "tiny", "version": "1", "embedding_dim": DIM}


def write_parts(folder: Path, table: pa.Table, part: int = 70) -> Path:
    folder.mkdir()
    for number, start in enumerate(range(0, table.num_rows, part)):
        pq.write_table(table.slice(start, part), folder / f"part-{number:05d}.parquet")
    return folder


def clustered_table(seed: int = 0, count: int = COUNT, *, split: str = "gallery") -> pa.Table:
    """+-1 vectors around a few centres and many copies: cosines are exact and tied."""
    rng = np.random.default_rng(seed)
    centres = sign_vectors(rng, 8)
    vectors = centres[rng.integers(0, 8, count)] * np.where(rng.random((count, DIM)) < 0.1, -1, 1)
    vectors = vectors.astype(np.float32)
    copies = rng.integers(0, count, (count // 3, 2))
    vectors[copies[:, 0]] = vectors[copies[:, 1]]
    return embedding_table(
        vectors,
        identity=[f"x{i % 9}" for i in range(count)],
        camera=[None if i % 7 == 0 else f"c{i % 3}" for i in range(count)],
        split=split,
    )


def vectors_of(table: pa.Table) -> np.ndarray:
    return np.stack(table["embedding"].to_numpy(zero_copy_only=False))


def reference(vectors_ND: np.ndarray, queries_QD: np.ndarray, top_k: int):
    """Ids and scores of the whole sorted gallery, cut."""
    unit = vectors_ND / np.linalg.norm(vectors_ND.astype(np.float64), axis=1, keepdims=True)
    asked = queries_QD / np.linalg.norm(queries_QD.astype(np.float64), axis=1, keepdims=True)
    scores = (asked @ unit.T).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return order.tolist(), np.take_along_axis(scores, order, axis=1)


@pytest.fixture(scope="module")
def table():
    return clustered_table()


@pytest.fixture(scope="module")
def parts(tmp_path_factory, table):
    return write_parts(tmp_path_factory.mktemp("embeddings") / "parts", table)


@pytest.fixture
def built(tmp_path, parts) -> Path:
    out = tmp_path / "built"
    build_gallery(parts, str(out), model=MODEL, shards=4)
    return out


@pytest.mark.parametrize("shards", [1, 4, 37])
@pytest.mark.parametrize("top_k", [1, 10, 120, COUNT, COUNT + 5])
def test_search_is_exact_with_ties_for_any_number_of_shards(tmp_path, table, parts, shards, top_k):
    build_gallery(parts, str(tmp_path), model=MODEL, shards=shards)
    queries = np.concatenate([vectors_of(table)[:20], sign_vectors(np.random.default_rng(9), 20)])
    found = gallery.open(tmp_path).search(3 * queries, top_k)
    ids, scores = reference(vectors_of(table), queries, top_k)
    assert [[hit.id for hit in hits] for hits in found] == ids
    assert [[hit.score for hit in hits] for hits in found] == scores.tolist()


def test_real_numbers_give_the_same_hits_alone_and_together(tmp_path):
    rng = np.random.default_rng(4)
    base = rng.standard_normal((400, 96)).astype(np.float32)
    # neighbours closer than float32 rounding, so that the index alone could not order them
    vectors = np.concatenate([base, base + 1e-7 * rng.standard_normal(base.shape)])
    vectors = vectors.astype(np.float32)
    table = embedding_table(vectors, identity=["x"] * len(vectors))
    results = []
    for shards in (1, 5):
        pq.write_table(table, tmp_path / "e.parquet")
        out = tmp_path / f"g{shards}"
        build_gallery(tmp_path / "e.parquet", str(out), model={}, shards=shards)
        opened = gallery.open(out)
        results.append(opened.search(base[:60], 7))
        results.append([opened.search(query[None], 7)[0] for query in base[:60]])
    assert all(result == results[0] for result in results[1:])


def test_more_equal_vectors_than_are_proposed_are_all_looked_at(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    vectors = np.concatenate([sign_vectors(rng, 100), np.repeat(sign_vectors(rng, 1), 200, axis=0)])
    pq.write_table(embedding_table(vectors, identity=["x"] * 300), tmp_path / "e.parquet")
    build_gallery(tmp_path / "e.parquet", str(tmp_path / "g"), model={}, shards=3)
    asked = []
    above = Shard.above
    monkeypatch.setattr(Shard, "above", lambda self, *a: asked.append(1) or above(self, *a))
    hits = gallery.open(tmp_path / "g").search(vectors[-1:], 5)[0]
    assert [hit.id for hit in hits] == [100, 101, 102, 103, 104]
    assert len(asked) == 3


def test_hits_carry_their_rows(built, table):
    hits = gallery.open(built).search(vectors_of(table)[5:6], 50)[0]
    rows = table.to_pylist()
    for hit in hits:
        row = rows[hit.id]
        assert (hit.key, hit.identity, hit.camera) == (row["key"], row["identity"], row["camera"])
        assert hit.uri is None


def test_only_normal_and_distractor_rows_of_the_split_go_in(tmp_path):
    role = ["normal", "junk", "distractor"] * 10
    split = ["gallery"] * 15 + ["query"] * 15
    vectors = sign_vectors(np.random.default_rng(1), 30)
    table = embedding_table(vectors, identity=["x"] * 30, role=role, split=split)
    pq.write_table(table, tmp_path / "e.parquet")
    sizes = {}
    for name, choice in (("gallery", "gallery"), ("all", None)):
        out = tmp_path / name
        build_gallery(tmp_path / "e.parquet", str(out), model={}, split=choice)
        opened = gallery.open(out)
        sizes[name] = len(opened)
        keys = [hit.key for hit in opened.search(vectors[:1], 30)[0]]
        expected = [
            row["key"]
            for row in table.to_pylist()
            if row["role"] != "junk" and choice in (None, row["split"])
        ]
        assert sorted(keys) == sorted(expected)
    assert sizes == {"gallery": 10, "all": 20}


def test_a_second_build_returns_and_takes_new_figures(built, parts):
    before = (built / "shard-00002.faiss").stat().st_mtime_ns
    again = build_gallery(
        parts, str(built), model={**MODEL, "version": "2"}, shards=4, evaluation={"mAP": 50.0}
    )
    assert again.skipped
    assert (built / "shard-00002.faiss").stat().st_mtime_ns == before
    info = gallery.open(built).info()
    assert info["model"]["version"] == "2"
    assert info["evaluation"] == {"mAP": 50.0}
    assert len(info["evaluation_fingerprint"]) == 64
    json.dumps(info)


def test_another_gallery_in_the_folder_stays_whole(built, parts):
    with pytest.raises(UserError, match="holds a gallery of other embeddings or settings"):
        build_gallery(parts, str(built), model=MODEL, shards=3)
    assert verify_gallery(built) == []
    assert len(gallery.open(built).manifest.shards) == 4


def test_a_killed_build_goes_on(tmp_path, parts, table):
    out = tmp_path / "killed"
    # the third shard is killed with its first file written and its second half-written
    script = f"""
import os, signal
import pyarrow.parquet as pq
from pipelines.gallery import build_gallery
write = pq.write_table
def write_or_die(table, stream, **options):
    if table["id"][0].as_py() >= {COUNT // 2}:
        stream.write(b"half")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(table, stream, **options)
pq.write_table = write_or_die
build_gallery({str(parts)!r}, {str(out)!r}, model={MODEL!r}, shards=4)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=False)
    assert ended.returncode == -9
    assert not (out / "gallery.json").exists()
    assert len(list(out.glob(".tmp-*"))) == 1
    with pytest.raises(UserError, match="no gallery at"):
        gallery.open(out)
    build = build_gallery(parts, str(out), model=MODEL, shards=4)
    assert (build.reused_shards, build.skipped) == (2, False)
    assert verify_gallery(out) == []
    assert {path.name for path in out.iterdir()} == {
        "gallery.json",
        *(f"shard-0000{i}.faiss" for i in range(4)),
        *(f"rows-0000{i}.parquet" for i in range(4)),
    }
    fresh = build_gallery(parts, str(tmp_path / "fresh"), model=MODEL, shards=4)
    assert build.manifest == fresh.manifest


def test_shards_of_another_build_or_with_changed_bytes_are_not_reused(tmp_path, parts, table):
    out = tmp_path / "g"

    def stop(function, jobs):
        for job in jobs[:2]:
            function(job)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_gallery(parts, str(out), model=MODEL, shards=5, map_shards=stop)
    data = bytearray((out / "shard-00001.faiss").read_bytes())
    data[-1] ^= 1
    (out / "shard-00001.faiss").write_bytes(data)
    assert build_gallery(parts, str(out), model=MODEL, shards=5).reused_shards == 1
    other = tmp_path / "other"
    with pytest.raises(KeyboardInterrupt):
        build_gallery(parts, str(other), model=MODEL, shards=5, map_shards=stop)
    assert build_gallery(parts, str(other), model=MODEL, shards=1).reused_shards == 0
    assert len(list(other.glob("*-0000*"))) == 2
    assert verify_gallery(out) == verify_gallery(other) == []


def test_shards_may_be_built_in_any_order(tmp_path, parts, built):
    def backwards(function, jobs):
        return [function(job) for job in reversed(jobs)]

    build = build_gallery(parts, str(tmp_path / "b"), model=MODEL, shards=4, map_shards=backwards)
    assert build.manifest == gallery.open(built).manifest


def test_settings_and_embeddings_that_do_not_fit_are_named(tmp_path, parts):
    cases = [
        ({"index": "IVF256,Flat"}, r"gallery\.index=IVF256,Flat is not supported: use flat"),
        ({"shards": 0}, r"gallery\.shards=0"),
        ({"shards": COUNT + 1}, rf"gallery\.shards={COUNT + 1} is more than the {COUNT} rows"),
        ({"split": "train"}, r"no rows with split='train'"),
        ({"model": {"name": "m", "embedding_dim": 512}}, r"64 dimensions .*model m makes 512"),
    ]
    for settings, message in cases:
        with pytest.raises(UserError, match=message):
            build_gallery(parts, str(tmp_path / "g"), **({"model": MODEL} | settings))
    assert not list((tmp_path).glob("g/gallery.json"))


def test_queries_that_do_not_fit_are_refused(built):
    opened = gallery.open(f"file://{built}")
    for shape in ((1, 512), (DIM,)):
        with pytest.raises(UserError, match=rf"shape \[{', '.join(map(str, shape))}\].* 64 dim"):
            opened.search(np.ones(shape))
    with pytest.raises(UserError, match="query 1 is zero or not finite"):
        opened.search(np.stack([np.ones(DIM), np.zeros(DIM)]))
    with pytest.raises(UserError, match="top_k=0"):
        opened.search(np.ones((1, DIM)), 0)
    assert opened.search(np.empty((0, DIM))) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["shard-00001.faiss", "rows-00002.parquet"])
def test_a_damaged_file_is_named(built, name):
    whole = (built / name).read_bytes()
    cut(built / name)
    with pytest.raises(UserError, match=rf"{name} is damaged \({len(whole) - 7} bytes, not"):
        gallery.open(built)
    (built / name).write_bytes(whole)
    flip(built / name)
    with pytest.raises(UserError, match=rf"{name}: its SHA-256"):
        gallery.open(built, check_digests=True)
    assert [problem.partition(f"{name}: ")[2] for problem in verify_gallery(built)] == [
        "its SHA-256 is not the manifest's"
    ]
    (built / name).unlink()
    with pytest.raises(UserError, match=rf"{name} is damaged \(missing\)"):
        gallery.open(built)
    assert verify_gallery(built) == [f"{built}/{name}: missing"]


def forge(folder: Path, opened: Gallery, name: str, data: bytes) -> None:
    """Replace a file and its entry in the manifest, as a faulty program would."""
    import hashlib

    (folder / name).write_bytes(data)
    manifest = opened.manifest.to_dict()
    for shard in manifest["shards"]:
        for entry in (shard["index"], shard["rows_file"]):
            if entry["name"] == name:
                entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "gallery.json").write_text(json.dumps(manifest))


def test_verify_sees_wrong_content_under_right_digests(built):
    opened = gallery.open(built)
    first = opened.manifest.shards[0].rows
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(DIM))
    vectors = np.full((first, DIM), 1 / 8, np.float32)
    vectors[3] *= 2
    index.add_with_ids(vectors, np.arange(first) + first)
    forge(built, opened, "shard-00000.faiss", faiss.serialize_index(index).tobytes())
    problems = "\n".join(opened.verify())
    assert "rows-00000.parquet: ids differ from shard-00000.faiss" in problems
    assert f"vector {first + 3} is not of length 1" in problems
    assert "an id stands twice" in problems


def test_a_shard_of_another_kind_is_refused(built):
    opened = gallery.open(built)
    for data, message in (
        (b"no index at all", "damaged"),
        (faiss.serialize_index(faiss.IndexFlatIP(DIM)).tobytes(), "damaged"),
        (
            faiss.serialize_index(faiss.IndexIDMap2(faiss.IndexFlatIP(32))).tobytes(),
            "0 vectors of 32",
        ),
    ):
        forge(built, opened, "shard-00000.faiss", data)
        with pytest.raises(UserError, match=rf"shard-00000\.faiss.*{message}"):
            gallery.open(built)


def test_manifests_that_cannot_be_read_are_named(built, tmp_path):
    with pytest.raises(UserError, match=r"no gallery at .*nowhere"):
        gallery.open(tmp_path / "nowhere")
    plain = json.loads((built / "gallery.json").read_text())
    cases = (
        (json.dumps(plain | {"schema_version": 99}), "schema version 99"),
        (json.dumps({k: v for k, v in plain.items() if k != "rows"}), "damaged .*rows"),
        ("{", "damaged"),
    )
    for text, message in cases:
        (built / "gallery.json").write_text(text)
        with pytest.raises(UserError, match=message):
            gallery.open(built)


def test_a_job_and_its_result_can_be_sent_to_a_worker(tmp_path, parts):
    import pickle

    def through_pickle(function, jobs):
        return [pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(j))))) for j in jobs]

    build = build_gallery(parts, str(tmp_path), model=MODEL, shards=2, map_shards=through_pickle)
    assert build.manifest.rows == COUNT


def test_build_shard_alone_is_idempotent(tmp_path, parts):
    jobs = []
    build_gallery(
        parts,
        str(tmp_path),
        model=MODEL,
        shards=2,
        map_shards=lambda function, js: [jobs.append(j) or function(j) for j in js],
    )
    again = build_shard(jobs[1])
    assert again.reused
    assert not build_shard(replace(jobs[1], source="another")).reused


def test_any_filesystem_will_do(parts, built):
    memory = fsspec.filesystem("memory")
    memory.put(str(parts), "/embeddings", recursive=True)
    source = "memory://embeddings"
    assert build_gallery(source, "memory://out", model=MODEL, shards=4).manifest.rows == COUNT
    queries = sign_vectors(np.random.default_rng(8), 5)
    assert gallery.open("memory://out").search(queries) == gallery.open(built).search(queries)
    assert verify_gallery("memory://out") == []
    memory.rm("/", recursive=True)


def test_search_works_on_small_blocks_of_queries(built, monkeypatch):
    opened = gallery.open(built)
    queries = sign_vectors(np.random.default_rng(3), 9)
    whole = opened.search(queries, 30)
    monkeypatch.setattr("pipelines.gallery.exact.WORK_BYTES", 1)
    assert opened.search(queries, 30) == whole
    assert len(search_exact(opened._shards, queries, 3)) == 9
