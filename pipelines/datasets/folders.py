"""What lies in a folder, as Arrow columns.

Memory: one chunk of Python strings at a time; what stays is the Arrow column of names.
"""

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.manifest import Column, join_path
from pipelines.errors import UserError
from pipelines.images import SUFFIXES

NAMES_PER_CHUNK = 65_536


def find_root(root: Path, parts: tuple[str, ...], known_names: tuple[str, ...]) -> Path:
    """The folder that holds `parts`: `root`, or the folder of a known name inside it."""
    return find_layout(root, {"": parts}, known_names)[0]


def find_layout(
    root: Path, layouts: Mapping[str, tuple[str, ...]], known_names: tuple[str, ...]
) -> tuple[Path, str]:
    """Which of `layouts` (folders by the layout's name) lies in `root`, or in a folder of a known
    name inside it, and that folder.

    Of two layouts in one folder the first is taken. Raises `UserError` where there is none, where
    one lacks a folder, and where more than one known name holds one.
    """
    require_folder(root)
    found: dict[tuple[int, int], tuple[Path, str]] = {}
    for candidate in (root, *(root / name for name in known_names)):
        for layout, parts in layouts.items():
            if any((candidate / part).is_dir() for part in parts):
                status = candidate.stat()
                found.setdefault((status.st_dev, status.st_ino), (candidate, layout))
    if not found:
        wanted = " or ".join(", ".join(parts) for parts in layouts.values())
        raise UserError(
            f"{root}: holds none of {wanted}; "
            "give the folder of the dataset, or the one that it lies in"
        )
    folder, layout = next(iter(found.values()))
    if folder != root and len(found) > 1:
        names = " and ".join(place.name for place, _ in found.values())
        raise UserError(f"{root}: holds {names}; give the path of the one that you mean")
    for part in layouts[layout]:
        require_folder(folder / part)
    return folder, layout


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
    placed = {"key": join_path(folder, names), "uri": join_path(root / folder, names)}
    return pa.table(placed | name_groups(fields))


def match_folders(
    root: Path, split_folders: Mapping[str, str], pattern: str, example: str
) -> pa.Table:
    """`match_names` of every folder, one after the other, with the split that it stands for."""
    parts = []
    for folder, split in split_folders.items():
        rows = match_names(root, folder, pattern, example)
        parts.append(rows.append_column("split", pa.repeat(split, len(rows))))
    return pa.concat_tables(parts)


def name_groups(fields: Column) -> dict[str, Column]:
    """The named groups that `extract_regex` found, a text column each."""
    return {fields.type.field(i).name: pc.struct_field(fields, i) for i in range(len(fields.type))}


def _visible(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed: {error.strerror}") from error
