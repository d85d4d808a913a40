"""Rules that split a test set into query and gallery where a dataset leaves that open.

Memory: a few columns beside the names.
"""

from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.manifest import Column


def first_of_each(identity: Column, *order: Column) -> pa.Array:
    """Which rows come first of their identity by `order` (bool column)."""
    if isinstance(identity, pa.ChunkedArray):
        identity = identity.combine_chunks()
    people = pc.dictionary_encode(identity)
    person_N = people.indices.to_numpy(zero_copy_only=False)
    columns = {"person": pa.array(person_N)} | {str(n): column for n, column in enumerate(order)}
    order_N = pc.sort_indices(
        pa.table(columns), sort_keys=[(name, "ascending") for name in columns]
    ).to_numpy()
    new_N = np.ones(len(order_N), bool)
    new_N[1:] = np.diff(person_N[order_N]) != 0
    first_N = np.empty(len(order_N), bool)
    first_N[order_N] = new_N
    return pa.array(first_N)


def name_numbers(names: Column) -> pa.Array:
    """A number for every name, from a hash: the same for the same name everywhere (uint64)."""
    digests = (blake2b(name.encode(), digest_size=8).digest() for name in names.to_pylist())
    return pa.array([int.from_bytes(digest, "big") for digest in digests], pa.uint64())


def split_classes(number: Column, key: Column, *, last_train: int) -> Column:
    """The split of a set of classes: those up to `last_train` train, the later ones test.

    The first image by key of a test class is its query and the others are the gallery. Protocols
    for such sets ask with every test image (leave_one_out), so this only says where a row is kept.
    """
    train = pc.less_equal(number, last_train)
    first = first_of_each(number, key)
    return pc.case_when(pc.make_struct(train, first), "train", "query", "gallery")


def class_name(number: Column) -> Column:
    """Class numbers as names that sort as the numbers do (`001`)."""
    return pc.utf8_lpad(pc.cast(number, pa.string()), 3, "0")
