"""Own images, listed in a CSV or Parquet file.

Columns `uri` and `identity` are needed; `key`, `camera`, `view`, `time`, `domain`, `split` and
`role` are read if there. A uri is an absolute path, a URI with a scheme, or a path from the table's
folder; the key is the uri as written unless there is a column for it. `time` is whole numbers or
timestamps (kept as milliseconds since 1970 UTC). The domain is the file's name without its suffix
unless there is a column for it. Without a split column `manifest.draw_splits` draws it. Other
columns are passed over, unless one looks like an absent column misspelt: then the table is refused
with the name that was probably meant.

A manifest written to Parquet is such a table and reads back as itself.
"""

from difflib import get_close_matches
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq

from pipelines.datasets.contract import PLAIN, Dataset
from pipelines.datasets.manifest import (
    MANIFEST_SCHEMA,
    build_manifest,
    draw_splits,
    join_path,
    require_filled,
)
from pipelines.errors import UserError

NEEDED = ("uri", "identity")
ABSOLUTE = r"^(/|[A-Za-z][A-Za-z0-9+.-]*://)"
NEAR = 0.75


def read_table(path: Path, _variant: str = PLAIN) -> pa.Table:
    """The manifest that a CSV or Parquet file lists.

    Raises `UserError` for a missing or unreadable file, a missing or misspelt column, a column of
    another type, and rows without uri or identity. Whether the images are there is seen at ingest.
    """
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the CSV or Parquet file that lists the images")
    if not path.exists():
        raise UserError(f"{path}: no such file; give the CSV or Parquet file that lists the images")
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix.lower() not in readers:
        raise UserError(f"{path}: the table must be a .csv or a .parquet file")
    try:
        rows = readers[path.suffix.lower()](path)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as a table: {reason}") from error
    if len(rows) == 0:
        raise UserError(f"{path}: lists no image; add a row an image")
    return _manifest(path, {name: _typed(path, name, rows[name]) for name in rows.column_names})


def _manifest(path: Path, columns: dict[str, pa.ChunkedArray]) -> pa.Table:
    for name in NEEDED:
        require_filled(columns[name], name, path)
    uri = columns.pop("uri")
    identity = columns.pop("identity")
    key = columns.pop("key", uri)
    camera = columns.get("camera", pa.nulls(len(uri), pa.string()))
    split = columns.pop("split", None)
    if split is None:
        split = draw_splits(identity, camera, key)
    role = columns.pop("role", None)
    absolute = pc.match_substring_regex(uri, ABSOLUTE)
    return build_manifest(
        path,
        key=key,
        uri=pc.if_else(absolute, uri, join_path(path.parent, uri)),
        identity=identity,
        domain=columns.pop("domain", path.stem),
        split=split,
        role="normal" if role is None else pc.fill_null(role, "normal"),
        **columns,
    )


def _read_csv(path: Path) -> pa.Table:
    """All but `time` is text: 0002 stays an identity and does not become the number 2."""
    parse = csv.ParseOptions(newlines_in_values=True)
    with csv.open_csv(path, parse_options=parse) as stream:
        present = _known_columns(path, stream.schema.names)
    types = {name: pa.string() for name in present if name != "time"}
    convert = csv.ConvertOptions(
        include_columns=present, column_types=types, null_values=[""], strings_can_be_null=True
    )
    return csv.read_csv(path, parse_options=parse, convert_options=convert)


def _read_parquet(path: Path) -> pa.Table:
    present = _known_columns(path, pq.read_schema(path).names)
    return pq.read_table(path, columns=present)


def _known_columns(path: Path, found: list[str]) -> list[str]:
    twice = sorted({name for name in found if found.count(name) > 1})
    if twice:
        raise UserError(f"{path}: the column {twice[0]} is there twice; keep one")
    absent = [name for name in MANIFEST_SCHEMA.names if name not in found]
    for name in found:
        if name in MANIFEST_SCHEMA.names:
            continue
        near = get_close_matches(name.lower(), absent, n=1, cutoff=NEAR)
        if near:
            raise UserError(f"{path}: unknown column {name!r}; did you mean {near[0]!r}?")
    for name in NEEDED:
        if name not in found:
            raise UserError(
                f"{path}: has no column {name}; it has {', '.join(found)} "
                f"and needs {' and '.join(NEEDED)}"
            )
    return [name for name in MANIFEST_SCHEMA.names if name in found]


def _typed(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in the manifest's type; integers may stand for names, timestamps for times."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_null(kind):
        return pc.cast(column, MANIFEST_SCHEMA.field(name).type)
    if name == "time":
        if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            return pc.cast(pc.cast(column, pa.timestamp("ms"), safe=False), pa.int64())
        if pa.types.is_integer(kind):
            return pc.cast(column, pa.int64())
        wanted = "whole numbers or timestamps"
    else:
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if text or pa.types.is_integer(kind):
            return pc.cast(column, pa.string())
        wanted = "text or whole numbers"
    raise UserError(f"{path}: the column {name} is of type {kind}; it must be {wanted}")


TABLE = Dataset(
    title="your images, listed in a table",
    layout="a CSV or Parquet file with uri, identity and more if you have it",
    read=read_table,
    terms="yours",
)
