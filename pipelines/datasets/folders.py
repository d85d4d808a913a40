"""What lies in a folder, as Arrow columns.

Memory: one chunk of Python strings at a time; what stays is the Arrow column of names.
"""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.manifest import join_path
from pipelines.errors import UserError
from pipelines.images import SUFFIXES

NAMES_PER_CHUNK = 65_536


def find_root(root: Path, parts: tuple[str, ...], known_names: tuple[str, ...]) -> Path:
    """The folder that holds `parts`: `root`, or the folder of a known name inside it."""
    require_folder(root)
    candidates = [root, *(root / name for name in known_names)]
    for candidate in candidates:
        if any((candidate / part).is_dir() for part in parts):
            for part in parts:
                require_folder(candidate / part)
            return candidate
    raise UserError(
        f"{root}: holds none of {', '.join(parts)}; "
        "give the folder of the dataset, or the one that it lies in"
    )


def require_folder(folder: Path) -> None:
    """Refuse a path that is no folder."""
    if not folder.exists():
        raise UserError(f"{folder}: no such folder; give the place where the images lie")
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder; give the folder that holds the images")


def list_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted; hidden ones are passed over."""
    return sorted(entry.name for entry in _visible(folder) if entry.is_dir())


def list_images(folder: Path) -> pa.ChunkedArray:
    """Names of the files in `folder` that end like an image, in no order (string column).

    Hidden files and other suffixes (Thumbs.db, text files) are passed over.
    """
    suffixes = tuple(SUFFIXES)
    names = (
        entry.name
        for entry in _visible(folder)
        if entry.name.lower().endswith(suffixes) and entry.is_file()
    )
    chunks = []
    while chunk := list(islice(names, NAMES_PER_CHUNK)):
        try:
            chunks.append(pa.array(chunk, pa.string()))
        except UnicodeEncodeError as error:
            raise UserError(
                f"{folder}: a file name is not UTF-8: {error.object!r}; rename the file"
            ) from error
    return pa.chunked_array(chunks, pa.string())


def match_names(root: Path, folder: str, pattern: str, example: str) -> pa.Table:
    """The images of `root/folder` and what their names say: key, uri, and a text column for every
    named group of `pattern`.

    Raises `UserError` with the first name that does not match; `example` says how it should look.
    """
    names = list_images(root / folder)
    fields = pc.extract_regex(names, pattern=pattern)
    unlike = names.filter(pc.is_null(fields))
    if len(unlike):
        others = f" ({len(unlike)} such images there)" if len(unlike) > 1 else ""
        raise UserError(
            f"{root / folder / pc.min(unlike).as_py()}: not named {example}{others}; "
            "rename it or take it away"
        )
    groups = {
        fields.type.field(i).name: pc.struct_field(fields, i) for i in range(len(fields.type))
    }
    return pa.table(
        {"key": join_path(folder, names), "uri": join_path(root / folder, names)} | groups
    )


def _visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
