"""CUHK03 (Li et al., "DeepReID", CVPR 2014) by the new protocol (Zhong et al., CVPR 2017).

The new protocol trains on 767 people and tests on 700, with boxes drawn by hand (`labeled`) or by a
detector (`detected`). Two layouts:

- prepacked, `{detected,labeled}/{bounding_box_train,query,bounding_box_test}` with `PPPP_cC_*.png`;
- as released, `cuhk03_release/cuhk-03.mat` with the authors' lists
  `cuhk03_new_protocol_config_{detected,labeled}.mat`. The images are written to
  `images_{detected,labeled}/` on the first read (`cuhk03_images`); what other tools wrote there
  under the same names is used as it is.

The five pairs of cameras count as one pair: the camera is the view, c1 or c2. The lists give
indices from 1 (MATLAB). The old protocol (20 random splits of 1,367 and 100 people) is not read.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.contract import Count, Dataset, Variant
from pipelines.datasets.cuhk03_images import extract_images
from pipelines.datasets.folders import find_layout, match_folders, name_groups
from pipelines.datasets.manifest import build_manifest, camera_name, join_path
from pipelines.datasets.matlab import load_matlab
from pipelines.errors import UserError

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
KNOWN_NAMES = ("cuhk03-np", "CUHK03-NP", "cuhk03", "CUHK03")
NAME = r"^(?P<identity>\d{4,})_c(?P<camera>\d{1,4})(?:[_.-].*)?\.[A-Za-z]+$"
EXAMPLE = "PPPP_cC_NN.png"
LISTED = r"^\d+_\d{3,}_(?P<camera>[12])_\d{2}\.png$"
INDICES = {"train_idx": "train", "query_idx": "query", "gallery_idx": "gallery"}


def read_cuhk03(root: Path, variant: str = "detected") -> pa.Table:
    """The manifest of CUHK03 by the new protocol; the layout is seen from the folders.

    `root` is the folder that holds one of the layouts, or the one above it. Raises `UserError` for
    a missing folder or file, a name that does not follow the rule, lists that do not fit, and where
    the images of the release have to be written and cannot be.
    """
    layouts = {
        "prepacked": tuple(f"{variant}/{folder}" for folder in FOLDERS),
        "written": (f"images_{variant}",),
        "released": ("cuhk03_release",),
    }
    root, layout = find_layout(root, layouts, KNOWN_NAMES)
    if layout == "prepacked":
        folders = {f"{variant}/{folder}": split for folder, split in FOLDERS.items()}
        rows = match_folders(root, folders, NAME, EXAMPLE)
    else:
        rows = _read_lists(root, variant)
        extract_images(root, variant)
    return build_manifest(
        root,
        key=rows["key"],
        uri=rows["uri"],
        identity=rows["identity"],
        camera=camera_name(rows["camera"]),
        split=rows["split"],
        domain="cuhk03",
    )


def _read_lists(root: Path, variant: str) -> pa.Table:
    """Rows by the authors' lists: names and labels of all files, and indices of the splits."""
    source = _find_lists(root, variant)
    lists = load_matlab(source, ("filelist", "labels", *INDICES))
    names = pa.array(["".join(cell) for cell in lists["filelist"].ravel()], pa.string())
    labels = lists["labels"].ravel()
    if len(names) != len(labels):
        raise UserError(
            f"{source}: lists {len(names)} files and {len(labels)} labels; take the authors' file"
        )
    fields = pc.extract_regex(names, pattern=LISTED)
    row = pc.index(pc.is_null(fields), True).as_py()
    if row >= 0:
        raise UserError(
            f"{source}: lists {names[row].as_py()!r}, which is not named as in 1_001_1_01.png "
            "(pair, person, view, index); take the authors' file"
        )
    person = pc.utf8_lpad(pc.cast(pa.array(labels.astype(np.int64)), pa.string()), 4, "0")
    folder = f"images_{variant}"
    rows = pa.table(
        {
            "key": join_path(folder, names),
            "uri": join_path(root / folder, names),
            "identity": person,
            "camera": name_groups(fields)["camera"],
        }
    )
    parts = []
    for variable, split in INDICES.items():
        taken = rows.take(_positions(lists[variable], variable, len(rows), source))
        parts.append(taken.append_column("split", pa.repeat(split, len(taken))))
    return pa.concat_tables(parts)


def _find_lists(root: Path, variant: str) -> Path:
    """The authors' lists, in the root or beside the images' archive."""
    name = f"cuhk03_new_protocol_config_{variant}.mat"
    inside = root / "cuhk03_release" / name
    return inside if inside.is_file() else root / name


def _positions(indices: Any, variable: str, length: int, source: Path) -> pa.Array:
    """MATLAB's indices, 1 to `length`, as positions from 0."""
    positions = indices.ravel().astype(np.int64) - 1
    if len(positions) and not 0 <= positions.min() <= positions.max() < length:
        raise UserError(
            f"{source}: {variable} goes from {positions.min() + 1} to {positions.max() + 1}, "
            f"and there are {length} files; take the authors' file"
        )
    return pa.array(positions)


CUHK03 = Dataset(
    title="CUHK03, new protocol",
    source='Li et al., "DeepReID: Deep Filter Pairing Neural Network for Person Re-Identification",'
    ' CVPR 2014; Zhong et al., "Re-ranking Person Re-identification with k-reciprocal Encoding", '
    "CVPR 2017",
    layout="{detected,labeled}/{bounding_box_train,query,bounding_box_test} with PPPP_cC_*.png; or "
    "cuhk03_release/cuhk-03.mat with cuhk03_new_protocol_config_{detected,labeled}.mat",
    read=read_cuhk03,
    protocol_note="New protocol, 767 and 700 people, ranked by Market's rule. Figures of the old "
    "one (20 splits of 1,367 and 100 people, one gallery image each) are far higher.",
    terms="research only, on request from its authors",
    variants={
        "detected": Variant(
            text="boxes of a detector",
            counts={
                "train": Count(images=7_365, identities=767),
                "query": Count(images=1_400, identities=700),
                "gallery": Count(images=5_332, identities=700),
            },
            cameras=2,
        ),
        "labeled": Variant(
            text="boxes drawn by hand",
            counts={
                "train": Count(images=7_368, identities=767),
                "query": Count(images=1_400, identities=700),
                "gallery": Count(images=5_328, identities=700),
            },
            cameras=2,
        ),
    },
)
