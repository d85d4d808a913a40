"""Which features stand side by side in an embedding, told in the file that holds it."""

import json

import pyarrow as pa

KEY = b"rayreid:parts"


def with_parts(table: pa.Table, parts: tuple[tuple[str, int], ...]) -> pa.Table:
    """The table with (name, width) of every part in its metadata."""
    return table.replace_schema_metadata({KEY: json.dumps(parts)})


def parts_of(schema: pa.Schema) -> tuple[tuple[str, int], ...]:
    """(name, width) of every part; empty where the file does not tell."""
    text = (schema.metadata or {}).get(KEY)
    return tuple((str(name), int(width)) for name, width in json.loads(text)) if text else ()
