"""The manifest: one row an image, the same columns for every dataset.

| column | meaning |
| --- | --- |
| key | stable name of the image inside its dataset: path from the root, with `/` |
| uri | where the encoded image lies: an absolute path or a URI |
| identity | who it is, after the dataset's name: `market1501/0002` |
| camera | which camera saw it, null if unknown; an unknown camera equals no other |
| view | from which side, null if unknown |
| time | when: frame number, or milliseconds since 1970 UTC; ordered within a camera |
| domain | the dataset, or what a table names as the domain; without `/` |
| split | train, query or gallery |
| role | normal; distractor: in the gallery, never right; junk: left out when ranks are counted |

Everything here works on whole Arrow columns; the memory bound is a few columns beside the table.
"""

from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import UserError

SPLITS = ("train", "query", "gallery")
ROLES = ("normal", "distractor", "junk")
MANIFEST_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uri", pa.string()),
        ("identity", pa.string()),
        ("camera", pa.string()),
        ("view", pa.string()),
        ("time", pa.int64()),
        ("domain", pa.string()),
        ("split", pa.string()),
        ("role", pa.string()),
    ]
)
REQUIRED = ("key", "uri", "identity", "domain", "split", "role")
TRAIN_SHARE = 0.5

Column: TypeAlias = pa.Array | pa.ChunkedArray
Value: TypeAlias = Column | str | None


def build_manifest(
    source: Path,
    *,
    key: Column,
    uri: Column,
    identity: Column,
    domain: Column | str,
    split: Column | str,
    camera: Value = None,
    view: Value = None,
    time: Value = None,
    role: Value = "normal",
) -> pa.Table:
    """Columns to a checked manifest, sorted by (split, identity, key).

    A single string or None stands for a whole column. `identity` gets the domain as its prefix
    unless it has it already. `source` is the path that errors name. Raises `UserError` where the
    rows are no dataset: none at all, a split without an image, a key twice, an empty value, an
    unknown split or role, a domain with a slash, an identity in train and test, or queries of
    nobody in the gallery.
    """
    if len(key) == 0:
        raise UserError(f"{source}: holds no image; give the place where the images lie")
    values: dict[str, Value] = {
        "key": key,
        "uri": uri,
        "identity": _with_domain(identity, domain),
        "camera": camera,
        "view": view,
        "time": time,
        "domain": domain,
        "split": split,
        "role": role,
    }
    columns = [_column(values[field.name], field.type, len(key)) for field in MANIFEST_SCHEMA]
    manifest = pa.Table.from_arrays(columns, schema=MANIFEST_SCHEMA)
    _check_values(manifest, source)
    manifest = manifest.sort_by([(name, "ascending") for name in ("split", "identity", "key")])
    _check_keys(manifest, source)
    _check_identities(manifest, source)
    return manifest


def draw_splits(identity: Column, camera: Column, key: Column) -> pa.Array:
    """A split for data that come with none; the same for the same rows in any order.

    Each identity has a number in [0, 1) from a hash of its name: below `TRAIN_SHARE` it trains,
    else it tests, so that an identity stays on its side while the dataset grows. The lowest number
    always trains and the highest always tests, so that two identities are enough. Of a test
    identity the first image of every camera by key is a query and the rest is the gallery; an
    identity that would have no gallery image keeps its last one there.
    """
    people = pc.dictionary_encode(identity)
    if isinstance(people, pa.ChunkedArray):
        people = people.combine_chunks()
    person_N = people.indices.to_numpy(zero_copy_only=False)
    train_P = _trains(people.dictionary.to_pylist())

    rows = pa.table({"identity": identity, "camera": camera, "key": key})
    order_N = pc.sort_indices(
        rows, sort_keys=[(name, "ascending") for name in rows.column_names]
    ).to_numpy()
    seen_by = pc.dictionary_encode(rows["camera"], null_encoding="encode").combine_chunks()
    camera_N = seen_by.indices.to_numpy(zero_copy_only=False)[order_N]
    person_N = person_N[order_N]

    new_person_N = np.r_[True, person_N[1:] != person_N[:-1]]
    first_N = new_person_N | np.r_[True, camera_N[1:] != camera_N[:-1]]
    last_N = np.r_[new_person_N[1:], True]
    all_first_P = np.bincount(person_N, weights=~first_N) == 0
    query_N = first_N & ~(last_N & all_first_P[person_N])

    split_N = np.empty(len(person_N), np.int8)
    split_N[order_N] = np.where(train_P[person_N], 0, np.where(query_N, 1, 2))
    return pc.take(pa.array(SPLITS), pa.array(split_N))


def require_filled(column: Column, name: str, source: Path) -> None:
    """Refuse a column with a null or an empty text."""
    row = pc.index(pc.fill_null(pc.equal(column, ""), True), True).as_py()
    if row >= 0:
        raise UserError(f"{source}: row {row + 1} has no {name}; fill it in or drop the row")


def camera_name(digits: Column) -> Column:
    """Camera numbers as text (`1`, `01`) to their names (`c1`); null stays null."""
    number = pc.cast(pc.cast(digits, pa.int32()), pa.string())
    return pc.binary_join_element_wise("c", number, "")


def join_path(folder: Path | str, names: Column) -> Column:
    """`folder/name` for every name."""
    return pc.binary_join_element_wise(str(folder), names, "/")


def _trains(names: list[str]) -> np.ndarray:
    digests = (blake2b(name.encode(), digest_size=8).digest() for name in names)
    number_P = np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)
    train_P = number_P < np.uint64(int(TRAIN_SHARE * 2**64))
    train_P[number_P.argmin()] = True
    train_P[number_P.argmax()] = False
    return train_P


def _with_domain(identity: Column, domain: Column | str) -> Column:
    named = pc.binary_join_element_wise(domain, identity, "/")
    has_it = pc.equal(pc.replace_substring_regex(identity, "/.*$", ""), domain)
    return pc.if_else(pc.and_(has_it, pc.match_substring(identity, "/")), identity, named)


def _column(value: Value, kind: pa.DataType, length: int) -> Column:
    if value is None or isinstance(value, str):
        return pa.repeat(pa.scalar(value, kind), length)
    return pc.cast(value, kind)


def _check_values(manifest: pa.Table, source: Path) -> None:
    for name in REQUIRED:
        require_filled(manifest[name], name, source)
    for name, allowed in (("split", SPLITS), ("role", ROLES)):
        for value in pc.unique(manifest[name]).to_pylist():
            if value not in allowed:
                raise UserError(f"{source}: {name} {value!r} is none of {', '.join(allowed)}")
    for domain in pc.unique(manifest["domain"]).to_pylist():
        if "/" in domain:
            raise UserError(
                f"{source}: the domain {domain!r} holds a slash, which ends the domain in "
                "identities such as market1501/0002; write it without"
            )
    present = pc.unique(manifest["split"]).to_pylist()
    for split in SPLITS:
        if split not in present:
            raise UserError(
                f"{source}: no image in the split {split}; train, query and gallery need some each"
            )


def _check_keys(manifest: pa.Table, source: Path) -> None:
    if pc.count_distinct(manifest["key"]).as_py() == len(manifest):
        return
    counts = pc.value_counts(manifest["key"])
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    raise UserError(
        f"{source}: the key {pc.min(twice).as_py()} stands for more than one image "
        f"({len(twice)} such keys); list every image once"
    )


def _check_identities(manifest: pa.Table, source: Path) -> None:
    """Open-set retrieval: nobody is in train and test, and somebody asked for can be found."""
    known = manifest.filter(pc.equal(manifest["role"], "normal"))
    train, query, gallery = (
        pc.unique(known["identity"].filter(pc.equal(known["split"], split))) for split in SPLITS
    )
    for name, test in (("query", query), ("gallery", gallery)):
        shared = test.filter(pc.is_in(test, train))
        if len(shared):
            raise UserError(
                f"{source}: {len(shared)} identities are in train and {name}, first "
                f"{pc.min(shared).as_py()}; train on other people than you test on, and if they "
                "are others with the same number, rename them"
            )
    if len(query) and not pc.any(pc.is_in(query, gallery)).as_py():
        raise UserError(
            f"{source}: no identity of the query split is in the gallery, first "
            f"{pc.min(query).as_py()}; put other images of the same identities into the gallery"
        )
