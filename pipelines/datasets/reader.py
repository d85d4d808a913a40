"""The names under which datasets are read."""

from difflib import get_close_matches
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipelines.datasets.cars196 import CARS196
from pipelines.datasets.contract import Dataset
from pipelines.datasets.cub200 import CUB200
from pipelines.datasets.cuhk03 import CUHK03
from pipelines.datasets.dukemtmc import DUKEMTMC
from pipelines.datasets.identity_folders import IDENTITY_FOLDERS
from pipelines.datasets.market1501 import MARKET1501, read_market1501
from pipelines.datasets.msmt17 import MSMT17
from pipelines.datasets.pku_reid import PKU_REID
from pipelines.datasets.table import TABLE
from pipelines.datasets.transfer import (
    ANY,
    ANY_TRANSFER,
    Transfer,
    bare_name,
    describe_transfers,
    find_transfer,
    read_transfer,
)
from pipelines.datasets.university1652 import UNIVERSITY1652
from pipelines.datasets.vehicleid import VEHICLEID
from pipelines.datasets.veri776 import VERI776
from pipelines.errors import UserError

DRAWN = Dataset(
    title="figures drawn by this program",
    layout=MARKET1501.layout,
    read=partial(read_market1501, domain="drawn"),
    terms="none",
)
NO_TRANSFER = Transfer()
DATASETS = {
    "market1501": MARKET1501,
    "dukemtmc": DUKEMTMC,
    "msmt17": MSMT17,
    "cuhk03": CUHK03,
    "veri776": VERI776,
    "vehicleid": VEHICLEID,
    "cars196": CARS196,
    "cub200": CUB200,
    "university1652": UNIVERSITY1652,
    "pku_reid": PKU_REID,
    "identity_folders": IDENTITY_FOLDERS,
    "table": TABLE,
    "drawn": DRAWN,
    ANY: ANY_TRANSFER,
}


def list_datasets() -> dict[str, Dataset]:
    """Every dataset by its name."""
    return dict(DATASETS)


def find_dataset(name: str) -> tuple[Dataset, str]:
    """The dataset and the variant of `NAME` or `NAME:VARIANT`.

    Raises `UserError` for a name or a variant that there is not.
    """
    base, _, variant = name.partition(":")
    if base not in DATASETS:
        near = get_close_matches(base, DATASETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(DATASETS)}"
        raise UserError(f"unknown dataset {base!r}; {hint}")
    dataset = DATASETS[base]
    if not variant:
        return dataset, dataset.default
    if variant not in dataset.variants:
        named = ", ".join(f"{base}:{name}" for name in dataset.variants if name)
        raise UserError(
            f"dataset {name!r}: no variant {variant!r}; "
            + (f"there are {named}" if named else f"{base} has none, leave out the colon")
        )
    return dataset, variant


DATASETS |= describe_transfers(find_dataset)


def read_dataset(name: str, root: str | None, transfer: Transfer = NO_TRANSFER) -> pa.Table:
    """The manifest of the dataset `NAME` or `NAME:VARIANT` at `root`: a table of `MANIFEST_SCHEMA`,
    a row an image. `transfer` has the settings of one that is joined from others.

    Rows are sorted by (split, identity, key), so that the same files give the same table; keys are
    unique; every uri is an absolute path (or, from a table, any URI that was listed). No image is
    opened. Memory: measured on half a million files with paths of 50 letters, the table takes 180
    bytes an image and reading it 950 at the peak, in 2.2 s.

    Raises `UserError`, one line with the path and the reason, for an unknown name and for whatever
    cannot be read as the layout says.
    """
    dataset, variant = find_dataset(name)
    plan = find_transfer(bare_name(name), transfer)
    if plan is not None:
        for joined in (*plan.sources, str(plan.target)):
            find_dataset(joined)
        return read_transfer(plan, root, read_dataset)
    assert dataset.read is not None
    if not root:
        raise UserError(f"dataset {name} needs data.root=PATH, the place where its images lie")
    if "://" in root:
        raise UserError(
            f"{root}: folders are read from a mounted file system; "
            "list remote images by their URIs in a CSV or Parquet file and use dataset=table"
        )
    return dataset.read(Path(root).expanduser().absolute(), variant)
