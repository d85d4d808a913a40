"""One shard of an open gallery: vectors mapped from disk, rows read when asked for.

The vectors of a local gallery are mapped, not read: opening costs nothing, and the page cache holds
what is searched. Rows stay in Parquet; a look-up reads the row groups that hold the asked rows.

Shapes: n vectors of the shard, Q queries, K candidates, M rows asked for, D embedding dimension.
"""

from functools import cached_property
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import UserError
from pipelines.gallery.manifest import ShardEntry
from pipelines.store import Folder

Vectors = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]


class Shard:
    """Vectors and rows; a position counts both from 0. Memory: 56 bytes a vector for the ids."""

    def __init__(self, folder: Folder, entry: ShardEntry, *, dim: int) -> None:
        """Open one shard.

        Raises:
            UserError: a file is missing, has another size than the manifest says, or cannot be
                read.
        """
        for file in entry.files:
            problem = size_problem(folder, file.name, file.bytes)
            if problem:
                raise _damaged(folder, file.name, problem)
        self.folder, self.entry = folder, entry
        try:
            # IndexIDMap2 in the file; the flat index inside is searched, and positions mapped here
            self._id_map = _read_index(folder, entry.index.name)
            self._flat: Any = faiss.downcast_index(self._id_map.index)
        except (RuntimeError, MemoryError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise _damaged(folder, entry.index.name, reason) from error
        found = (self._flat.ntotal, self._flat.d)
        if found != (entry.rows, dim):
            expected = f"not {entry.rows} of {dim} dimensions"
            raise _damaged(
                folder, entry.index.name, f"{found[0]} vectors of {found[1]}, {expected}"
            )
        self.ids: Positions = faiss.vector_to_array(self._id_map.id_map)

    def __len__(self) -> int:
        return self.entry.rows

    @cached_property
    def vectors(self) -> Vectors:
        """[n, D] The vectors in place; valid as long as the shard."""
        count, dim = self._flat.ntotal, self._flat.d
        return faiss.rev_swig_ptr(self._flat.get_xb(), count * dim).reshape(count, dim)

    def nearest(self, queries_QD: Vectors, count: int) -> tuple[Vectors, Positions]:
        """Scores and positions [Q, K] of the K best, K at most n, highest score first."""
        return self._flat.search(queries_QD, min(count, len(self)))

    def above(self, query_D: Vectors, score: float) -> Positions:
        """Positions of all vectors with a higher score; 12 bytes each."""
        _, _, positions = self._flat.range_search(query_D[None], score)
        return positions

    def rows(self, positions: Positions) -> pa.Table:
        """[M] The rows at ascending positions. Memory: one row group beside the result.

        Raises:
            UserError: the rows file cannot be read.
        """
        name = self.entry.rows_file.name
        pieces = []
        try:
            with self.folder.fs.open(self.folder.path(name), "rb") as stream:
                file = pq.ParquetFile(stream)
                start = 0
                for group in range(file.num_row_groups):
                    stop = start + file.metadata.row_group(group).num_rows
                    low, high = np.searchsorted(positions, (start, stop))
                    if low < high:
                        pieces.append(file.read_row_group(group).take(positions[low:high] - start))
                    start = stop
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.folder, name, str(error).splitlines()[0]) from error
        return pa.concat_tables(pieces)


def size_problem(folder: Folder, name: str, expected: int) -> str | None:
    """What is wrong with the presence or the size of a file, or None."""
    if not folder.exists(name):
        return "missing"
    size = int(folder.fs.size(folder.path(name)))
    return None if size == expected else f"{size} bytes, not {expected}"


def _read_index(folder: Folder, name: str) -> Any:
    if folder.is_local:
        return faiss.read_index(folder.path(name), faiss.IO_FLAG_MMAP_IFC)
    with folder.fs.open(folder.path(name), "rb") as stream:
        reader = faiss.PyCallbackIOReader(stream.read)  # type: ignore[attr-defined]  # not in its stub
        return faiss.read_index(reader)


def _damaged(folder: Folder, name: str, reason: str) -> UserError:
    return UserError(
        f"{folder.uri}/{name} is damaged ({reason}): delete the gallery and build it again"
    )
