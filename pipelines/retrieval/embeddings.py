"""Embedding files: the manifest's columns plus one fixed-size vector a row.

Files made by this pipeline and files made anywhere else come in here, so every check of a vector
stands here too: after this module a vector is finite, float32 and of unit length, and the inner
product of two vectors is their cosine.

Shapes: N rows, D embedding dimension.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.datasets.manifest import MANIFEST_SCHEMA, ROLES
from pipelines.embedding_parts import parts_of
from pipelines.errors import UserError
from pipelines.retrieval.vectors import HeldVectors
from pipelines.store import Folder

REQUIRED_COLUMNS = ("key", "identity", "split", "embedding")
BATCH_ROWS = 8192

Source = str | Path | Sequence[str | Path]


@dataclass(frozen=True, kw_only=True)
class EmbeddingSet:
    """Rows of images with their unit vectors; N x D x 4 bytes of memory plus the rows."""

    rows: pa.Table
    """[N] the manifest's columns, see `MANIFEST_SCHEMA`."""
    vectors: npt.NDArray[np.float32]
    """[N, D] float32, each row of length 1."""

    def __len__(self) -> int:
        return int(self.rows.num_rows)

    parts: tuple[tuple[str, int], ...] = ()
    """Names and widths of the parts of an embedding, where they are known."""

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the keys and the vectors in row order; the file layout plays no part."""
        digest = hashlib.sha256("\n".join(self.rows["key"].to_pylist()).encode())
        digest.update(np.ascontiguousarray(self.vectors).data)
        return digest.hexdigest()

    def vectors_of(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """[n, D] vectors of these ascending rows: a view where they stand side by side, else a
        copy."""
        if len(index) and index[-1] - index[0] == len(index) - 1:
            return self.vectors[index[0] : index[-1] + 1]
        return self.vectors[index]

    def source_of(self, index: npt.NDArray[np.int64]) -> HeldVectors:
        """The vectors of these ascending rows as blocks."""
        return HeldVectors(self.vectors_of(index))


def load_embeddings(source: Source, *, splits: Sequence[str] | None = None) -> EmbeddingSet:
    """Read embeddings of a Parquet file, a folder of `part-*.parquet`, or a list of files.

    Args:
        source: path or address, or several of them.
        splits: keep only the rows of these splits; None keeps all.

    Memory: the kept rows (N x D x 4 bytes, plus their columns) and one batch of 8,192 rows.

    Raises:
        UserError: nothing to read, a column missing or of the wrong type, two dimensions, a key
            twice in one split, or a vector that is zero or not finite (with its key).
    """
    files = embedding_files(source)
    dim, tables = read_rows(files)
    chosen = [np.flatnonzero(_in_splits(table, splits)) for table in tables]
    rows = pa.concat_tables([table.take(c) for table, c in zip(tables, chosen, strict=True)])
    check_keys(rows)
    vectors_ND = np.empty((rows.num_rows, dim), dtype=np.float32)
    filled = 0
    for file, rows_of_file in zip(files, chosen, strict=True):
        for block_BD in iter_unit_vectors(file, rows_of_file):
            vectors_ND[filled : filled + len(block_BD)] = block_BD
            filled += len(block_BD)
    return EmbeddingSet(rows=rows, vectors=vectors_ND, parts=read_parts(files[0]))


def embedding_files(source: Source) -> list[str]:
    """Addresses of the Parquet files behind `source`, a folder's parts in the order of their names.

    Raises:
        UserError: a path that is missing, or a folder without parts.
    """
    if not isinstance(source, str | Path):
        return [address for one in source for address in embedding_files(one)]
    folder = Folder.open(str(source))
    if not folder.exists():
        raise UserError(f"no embeddings at {source}: check the path, or run `reid embed` first")
    if folder.fs.isfile(folder.root):
        return [folder.uri]
    parts = [name for name in folder.names(".parquet") if name.startswith("part-")]
    if not parts:
        raise UserError(f"folder {source} holds no part-*.parquet: name the file, or embed first")
    return [(folder / name).uri for name in parts]


def read_rows(files: Sequence[str]) -> tuple[int, list[pa.Table]]:
    """The dimension D of all files, and for each its rows with the columns of `MANIFEST_SCHEMA`.

    Columns that a file lacks are null; a missing or null role is `normal`. No vector is read.

    Raises:
        UserError: a file that cannot be read, files of different dimensions, a column that cannot
            be brought to its type, or an unknown role.
    """
    dims, tables = set(), []
    for address in files:
        with _open(address) as file:
            dims.add(_dimension(address, file.schema_arrow))
            tables.append(_manifest_columns(address, file))
    if len(dims) > 1:
        found = " and ".join(str(dim) for dim in sorted(dims))
        raise UserError(f"the parts have embeddings of {found} dimensions: embed with one model")
    return dims.pop(), tables


def read_parts(address: str) -> tuple[tuple[str, int], ...]:
    """Names and widths of the parts of an embedding that a file tells of."""
    with _open(address) as file:
        return parts_of(file.schema_arrow)


def iter_unit_vectors(
    address: str, rows: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[np.float32]]:
    """Unit vectors [B, D], B at most 8,192, of these ascending row numbers of a file, in order.

    Row groups without such a row are not read.

    Raises:
        UserError: a vector that is zero or not finite, with its key.
    """
    with _open(address) as file:
        start = 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            low, high = np.searchsorted(rows, (start, stop))
            if low < high:
                yield from _vectors_of_group(file, group, rows[low:high] - start)
            start = stop


def unit_vectors(column: pa.ChunkedArray, keys: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """[n, D] float32 unit vectors of an embedding column, read at float32 whatever its type.

    Raises:
        UserError: a vector that is zero or not finite, with its key.
    """
    dim = column.type.list_size
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = np.concatenate([np.empty(0, np.float32), *chunks]).astype(np.float32, copy=False)
    raw_ND = flat.reshape(-1, dim)
    # float64: the squares of large float32 components overflow, those of tiny ones vanish
    norms_N = np.sqrt(np.einsum("nd,nd->n", raw_ND, raw_ND, dtype=np.float64))
    bad_rows = np.flatnonzero(~np.isfinite(norms_N) | (norms_N == 0))
    if len(bad_rows):
        bad = int(bad_rows[0])
        what = "all zeros" if norms_N[bad] == 0 else "not finite (NaN or infinity)"
        raise UserError(
            f"the embedding of {keys[bad].as_py()} is {what} ({len(bad_rows)} such here): "
            "leave the image out or embed it again"
        )
    return np.asarray(raw_ND / norms_N[:, None], dtype=np.float32)


def check_keys(rows: pa.Table) -> None:
    """Raise a UserError for a row without key, or a key that stands twice in one split."""
    if rows["key"].null_count:
        raise UserError(f"{rows['key'].null_count} embeddings have no key: every row needs one")
    pairs = Counter(zip(rows["split"].to_pylist(), rows["key"].to_pylist(), strict=True))
    (split, key), times = pairs.most_common(1)[0] if pairs else (("", ""), 1)
    if times > 1:
        raise UserError(
            f"key {key} stands {times} times in split {split}: is one part listed twice? "
            "Keys must be unique in a split"
        )


@contextmanager
def _open(address: str) -> Iterator[pq.ParquetFile]:
    folder = Folder.open(address)
    try:
        with folder.fs.open(folder.root, "rb") as stream:
            yield pq.ParquetFile(stream)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot read {address} as Parquet ({reason}): embed it again") from error


def _dimension(address: str, schema: pa.Schema) -> int:
    missing = [name for name in REQUIRED_COLUMNS if name not in schema.names]
    if missing:
        raise UserError(
            f"{address} lacks the column(s) {', '.join(missing)}: an embeddings file needs "
            f"{', '.join(REQUIRED_COLUMNS)}"
        )
    kind = schema.field("embedding").type
    if not (
        pa.types.is_fixed_size_list(kind)
        and kind.list_size > 0
        and (pa.types.is_float16(kind.value_type) or pa.types.is_float32(kind.value_type))
    ):
        raise UserError(
            f"{address}: column embedding is {kind}, not a fixed-size list of float16 or float32: "
            "cast it, for example to pyarrow.list_(pyarrow.float32(), DIM)"
        )
    return int(kind.list_size)


def _manifest_columns(address: str, file: pq.ParquetFile) -> pa.Table:
    names = [name for name in MANIFEST_SCHEMA.names if name in file.schema_arrow.names]
    table = file.read(columns=names)
    columns = {}
    for field in MANIFEST_SCHEMA:
        found = table[field.name] if field.name in names else pa.nulls(table.num_rows, field.type)
        columns[field.name] = _cast(found, field)
    columns["role"] = pc.fill_null(columns["role"], "normal")
    for value in pc.unique(columns["role"]).to_pylist():
        if value not in ROLES:
            raise UserError(f"{address}: role {value!r} is unknown: use one of {', '.join(ROLES)}")
    return pa.table(columns, schema=MANIFEST_SCHEMA)


def _vectors_of_group(
    file: pq.ParquetFile, group: int, rows: npt.NDArray[np.int64]
) -> Iterator[npt.NDArray[np.float32]]:
    start = 0
    columns = ["key", "embedding"]
    for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
        low, high = np.searchsorted(rows, (start, start + batch.num_rows))
        if low < high:
            chosen = pa.Table.from_batches([batch]).take(rows[low:high] - start)
            yield unit_vectors(chosen["embedding"], chosen["key"])
        start += batch.num_rows
        if high == len(rows):
            return


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    steps = [field.type]
    if field.name == "camera" and pa.types.is_floating(column.type):
        # pandas turns whole numbers with gaps into floats: 3.0 is the camera 3
        steps.insert(0, pa.int64())
    if field.name == "time" and pa.types.is_timestamp(column.type):
        steps.insert(0, pa.timestamp("ms"))
    try:
        for kind in steps:
            column = column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"column {field.name} of the embeddings cannot be read as {field.type} ({reason})"
        ) from error
    return column


def _in_splits(table: pa.Table, splits: Sequence[str] | None) -> npt.NDArray[np.bool_]:
    if splits is None:
        return np.ones(table.num_rows, dtype=bool)
    return np.asarray(pc.is_in(table["split"], value_set=pa.array(list(splits), pa.string())))
