"""The owners' judgements of VeRi-776: which gallery images are right for a query, and which do not
count.

A line stands for a query, in the order of `name_query.txt`. The archive comes with one of two
forms: `gt_image.txt` (right) and `jk_image.txt` (junk) name images of `name_test.txt`, separated by
blanks; `gt_index.txt` and `jk_index.txt` say their places there, from 1. A line may be empty.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.lists import read_lines
from pipelines.datasets.veri776 import LISTS, find_veri776, read_names
from pipelines.errors import UserError

FORMS = (("gt_image.txt", "jk_image.txt"), ("gt_index.txt", "jk_index.txt"))


def read_judgements(root: Path) -> pa.Table:
    """A row a query, in the order of `name_query.txt`: `query` (its key), `good` and `junk` (lists
    of gallery keys); strings. Gallery images in neither list are wrong.

    `root` is that of `read_veri776`. Raises `UserError` for a missing list, for another number of
    lines than queries, for an image that is not in the gallery, and for one that is judged twice
    for a query. Memory: the judgements, about 5 MB for the official ones.
    """
    root = find_veri776(root)
    for name in (LISTS["image_query"], LISTS["image_test"]):
        if not (root / name).is_file():
            raise UserError(f"{root / name}: no such file; the judgements go by its order")
    query = read_names(root, "image_query")["key"]
    gallery = read_names(root, "image_test")
    for form in FORMS:
        if (root / form[0]).is_file():
            good, junk = (_read_judged(root / name, len(query), gallery) for name in form)
            break
    else:
        raise UserError(
            f"{root / FORMS[0][0]}: no such file, nor {FORMS[1][0]}; take both lists of the "
            "judgements from the archive, or use the protocol market"
        )
    _check_once(root / form[1], good, junk)
    return pa.table({"query": query, "good": good, "junk": junk})


def _read_judged(path: Path, queries: int, gallery: pa.Table) -> pa.ListArray:
    """The gallery keys that every line of `path` lists."""
    lines = read_lines(path).to_pylist()
    if not lines[-1]:
        lines.pop()  # what stands after the last line's end
    while len(lines) > queries and not lines[-1]:
        lines.pop()
    if len(lines) != queries:
        raise UserError(
            f"{path}: has {len(lines)} lines for the {queries} queries of name_query.txt; take "
            "both files from one archive"
        )
    listed = pa.array([line.split() for line in lines], pa.list_(pa.string()))
    words = listed.flatten()
    if path.name.endswith("_index.txt"):
        names = pc.cast(pa.array(range(1, len(gallery) + 1)), pa.string())
    else:
        names = gallery["name"]
    place = pc.index_in(words, names)
    unknown = pc.index(pc.is_null(place), True).as_py()
    if unknown >= 0:
        line = pc.list_parent_indices(listed)[unknown].as_py() + 1
        raise UserError(
            f"{path}: line {line} lists {words[unknown].as_py()!r}, which is no image of "
            "name_test.txt; take both files from one archive"
        )
    keys = pc.take(gallery["key"].combine_chunks(), place)
    return pa.ListArray.from_arrays(listed.offsets, keys)


def _check_once(path: Path, good: pa.ListArray, junk: pa.ListArray) -> None:
    judged = pa.table(
        {
            "query": pa.chunked_array([pc.list_parent_indices(part) for part in (good, junk)]),
            "key": pa.chunked_array([part.flatten() for part in (good, junk)]),
        }
    )
    times = judged.group_by(["query", "key"]).aggregate([([], "count_all")])
    twice = times.filter(pc.greater(times["count_all"], 1))
    if len(twice):
        row = twice.slice(0, 1).to_pylist()[0]
        raise UserError(
            f"{path}: {row['key']} is judged twice for the query of line {row['query'] + 1}; "
            "correct it or the list of right images"
        )
