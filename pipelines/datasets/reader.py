"""The names under which datasets are read."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import pyarrow as pa

from pipelines.datasets.identity_folders import read_identity_folders
from pipelines.datasets.market1501 import read_market1501
from pipelines.datasets.pku_reid import read_pku_reid
from pipelines.datasets.table import read_table
from pipelines.errors import UserError


@dataclass(frozen=True)
class Layout:
    """One way in which images and their identities lie on a disk."""

    description: str
    read: Callable[[Path], pa.Table]


LAYOUTS = {
    "market1501": Layout(
        "Market-1501: bounding_box_train, query, bounding_box_test with PPPP_cCsS_FFFFFF_BB.jpg",
        read_market1501,
    ),
    "pku_reid": Layout(
        "PKU-Reid as in LA-TF++: train, val/query, val/gallery with PERSON/CAMERA_ANGLE.png",
        read_pku_reid,
    ),
    "identity_folders": Layout(
        "your images, a folder an identity; optionally under train, query and gallery",
        read_identity_folders,
    ),
    "table": Layout(
        "your images, listed in a CSV or Parquet file with uri, identity and more if you have it",
        read_table,
    ),
    "drawn": Layout(
        "figures drawn by this program, in Market-1501's layout",
        partial(read_market1501, domain="drawn"),
    ),
}


def list_datasets() -> dict[str, str]:
    """Every dataset name with one line on its layout."""
    return {name: layout.description for name, layout in LAYOUTS.items()}


def read_dataset(name: str, root: str | None) -> pa.Table:
    """The manifest of the dataset at `root`: a table of `MANIFEST_SCHEMA`, a row an image.

    Rows are sorted by (split, identity, key), so that the same files give the same table; keys are
    unique; every uri is an absolute path (or, from a table, any URI that was listed). No image is
    opened. Memory: measured on half a million files with paths of 50 letters, the table takes 180
    bytes an image and reading it 950 at the peak, in 2.2 s.

    Raises `UserError`, one line with the path and the reason, for an unknown name and for whatever
    cannot be read as the layout says.
    """
    if name not in LAYOUTS:
        near = get_close_matches(name, LAYOUTS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(LAYOUTS)}"
        raise UserError(f"unknown dataset {name!r}; {hint}")
    if not root:
        raise UserError(f"dataset {name} needs data.root=PATH, the place where its images lie")
    if "://" in root:
        raise UserError(
            f"{root}: folders are read from a mounted file system; "
            "list remote images by their URIs in a CSV or Parquet file and use dataset=table"
        )
    return LAYOUTS[name].read(Path(root).expanduser().absolute())
