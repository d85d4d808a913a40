"""Which files of a manifest are there, and what else lies in their folders.

Folders are listed, which is faster than asking for every file. Memory: the paths of the manifest
and of the files that were found.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.folders import list_images
from pipelines.datasets.manifest import join_path
from pipelines.errors import UserError

PATH = r"(?s)^(?P<folder>.*)/(?P<name>[^/]*)$"


@dataclass(frozen=True, kw_only=True)
class Files:
    """What lies in the folders of a manifest's images."""

    present: pa.Table
    """The manifest's rows whose files are there."""
    missing: pa.Table
    """Those whose files are not."""
    extra: pa.ChunkedArray
    """Paths of images that no row lists, sorted."""
    others: int
    """Number of files that no row lists and that do not end like an image, or are hidden."""


def find_files(rows: pa.Table) -> Files:
    """Look into every folder in which a file of the manifest's rows should lie.

    The uris must be absolute paths; links to folders are followed. Raises `UserError` for a folder
    that cannot be listed.
    """
    parts = pc.extract_regex(rows["uri"].combine_chunks(), pattern=PATH)
    folder = pc.dictionary_encode(pc.struct_field(parts, "folder"))
    places = [os.path.realpath(name or "/") for name in folder.dictionary.to_pylist()]
    listed = pc.binary_join_element_wise(
        pa.array(places, pa.string()).take(folder.indices), pc.struct_field(parts, "name"), "/"
    )
    chunks: list[pa.Array] = []
    others = 0
    for place in sorted(set(places)):
        names, total = _list_folder(Path(place))
        chunks += join_path(place, names).chunks
        others += total - len(names)
    images = pa.chunked_array(chunks, pa.string())

    there_N = np.array(pc.is_in(listed, images))
    unlike = set()
    for row in np.flatnonzero(~there_N):  # a listed file may be hidden, or end like no image
        path = listed[row].as_py()
        if Path(path).is_file():
            there_N[row] = True
            unlike.add(path)
    return Files(
        present=rows.filter(pa.array(there_N)),
        missing=rows.filter(pa.array(~there_N)),
        extra=images.filter(pc.invert(pc.is_in(images, listed))).sort(),
        others=others - len(unlike),
    )


def _list_folder(folder: Path) -> tuple[pa.ChunkedArray, int]:
    """The names of a folder's images, and the number of all its files."""
    if not folder.is_dir():
        return pa.chunked_array([], pa.string()), 0
    names = list_images(folder)
    try:
        with os.scandir(folder) as entries:
            return names, sum(entry.is_file() for entry in entries)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
