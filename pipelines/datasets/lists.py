"""Text files that list images, as Arrow columns: a line an image.

Paths that lists name are columns of the manifest whether the images are there or not; what is
missing is seen when the images are read. Memory: the file's text and its columns.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.folders import name_groups
from pipelines.datasets.manifest import Column, join_path
from pipelines.errors import UserError

OUTSIDE = r"^$|^[/\\]|^[A-Za-z]:|\\|(?:^|/)\.{0,2}(?:/|$)"


def read_lines(path: Path) -> pa.Array:
    """The lines of a UTF-8 text file without the blanks around them; empty lines stay."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; take it from the archive of the dataset") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read: {error}; take it anew from the archive"
        ) from error
    return pc.utf8_trim_whitespace(pa.array(text.split("\n"), pa.string()))


def match_lines(path: Path, pattern: str, example: str) -> pa.Table:
    """What the lines of `path` say: a text column for every named group of `pattern`.

    Empty lines are passed over. Raises `UserError` with the number of the first line that does not
    match (`example` says how it should look), and for a file that lists nothing.
    """
    lines = read_lines(path)
    fields = pc.extract_regex(lines, pattern=pattern)
    filled = pc.not_equal(lines, "")
    unlike = pc.index(pc.and_(filled, pc.is_null(fields)), True).as_py()
    if unlike >= 0:
        raise UserError(
            f"{path}: line {unlike + 1} is {lines[unlike].as_py()[:80]!r} and not {example}; "
            "correct it or take the file anew from the archive"
        )
    listed = fields.filter(filled)
    if len(listed) == 0:
        raise UserError(f"{path}: lists nothing; take it anew from the archive")
    return pa.table(name_groups(listed))


def place_listed(root: Path, folder: str, paths: Column, source: Path) -> dict[str, Column]:
    """Columns key and uri of images that the file `source` lists by their paths from `root/folder`.

    Raises `UserError` for a path that could lead out of that folder.
    """
    row = pc.index(pc.match_substring_regex(paths, OUTSIDE), True).as_py()
    if row >= 0:
        raise UserError(
            f"{source}: lists {paths[row].as_py()!r}, which is no path inside {root / folder}; "
            "correct it or take the file anew from the archive"
        )
    key = join_path(folder, paths) if folder else paths
    return {"key": key, "uri": join_path(root, key)}
