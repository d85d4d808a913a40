"""CUB-200-2011 (Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011) for retrieval.

`images.txt` lists `ID NNN.Name/IMAGE.jpg` and `image_class_labels.txt` `ID CLASS`; the images lie
under `images/`. Retrieval takes classes 1 to 100 for training and 101 to 200 for the test (Song et
al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016); the split of images
in `train_test_split.txt` is another task, with the same classes on both sides, and is not read, nor
are the boxes. The two lists are joined by ID, and the class must be that of the image's folder.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.contract import PLAIN, Count, Dataset, Variant
from pipelines.datasets.folders import find_root
from pipelines.datasets.lists import match_lines, place_listed
from pipelines.datasets.manifest import build_manifest
from pipelines.datasets.splits import class_name, split_classes
from pipelines.errors import UserError

KNOWN_NAMES = ("CUB_200_2011", "CUB-200-2011", "cub200")
IMAGE = r"^(?P<id>\d+)\s+(?P<path>(?P<folder>\d{1,4})\.[^/]+/.+)$"
LABEL = r"^(?P<id>\d+)\s+(?P<number>\d{1,4})$"
LAST_TRAIN = 100


def read_cub200(root: Path, _variant: str = PLAIN) -> pa.Table:
    """The manifest of CUB-200-2011; the identity is the class's number, in three digits.

    `root` is the folder that holds `images.txt` and `images`, or the one above it. Raises
    `UserError` for a missing list or folder, for a line that is not as it should be, and where the
    lists disagree with each other or with the folders.
    """
    root = find_root(root, ("images",), KNOWN_NAMES)
    images = match_lines(root / "images.txt", IMAGE, "ID NNN.Name/IMAGE.jpg")
    path = root / "image_class_labels.txt"
    labels = match_lines(path, LABEL, "ID CLASS")
    rows = images.append_column("number", _look_up(images["id"], labels, path))
    _check_folders(rows, path)
    placed = place_listed(root, "images", rows["path"], root / "images.txt")
    number = pc.cast(rows["number"], pa.int32())
    return build_manifest(
        root,
        **placed,
        identity=class_name(number),
        split=split_classes(number, placed["key"], last_train=LAST_TRAIN),
        domain="cub200",
    )


def _look_up(ids: pa.ChunkedArray, labels: pa.Table, path: Path) -> pa.ChunkedArray:
    """The class of every image, by its id."""
    if pc.count_distinct(labels["id"]).as_py() < len(labels):
        raise UserError(f"{path}: labels an image twice; take it anew from the archive")
    number = pc.take(labels["number"], pc.index_in(ids, labels["id"]))
    missing = ids.filter(pc.is_null(number))
    if len(missing):
        raise UserError(
            f"{path}: has no class for image {missing[0].as_py()} of images.txt "
            f"({len(missing)} such images); take both files from one archive"
        )
    return number


def _check_folders(rows: pa.Table, path: Path) -> None:
    label, folder = (pc.cast(rows[name], pa.int32()) for name in ("number", "folder"))
    wrong = rows.filter(pc.not_equal(label, folder))
    if len(wrong):
        row = wrong.slice(0, 1).to_pylist()[0]
        raise UserError(
            f"{path}: image {row['id']} is of class {row['number']} and lies at {row['path']}; "
            "take images.txt and the labels from one archive"
        )


CUB200 = Dataset(
    title="CUB-200-2011",
    source='Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011',
    layout="images.txt, image_class_labels.txt, images/NNN.Name/IMAGE.jpg",
    read=read_cub200,
    protocol="leave_one_out",
    protocol_note="Classes 1 to 100 train and 101 to 200 test; every test image asks all others. "
    "Boxes are not used.",
    terms="non-commercial research and education only",
    variants={
        PLAIN: Variant(
            counts={
                "train": Count(images=5_864, identities=100),
                "query": Count(images=100, identities=100),
                "gallery": Count(images=5_824, identities=100),
            }
        )
    },
)
