"""Cars196 (Krause et al., "3D Object Representations for Fine-Grained Categorization", 2013).

It was released twice, with the same 16,185 images. In one folder: `car_ims/` and `cars_annos.mat`
(fields `relative_im_path`, `class`). Split: `cars_train/`, `cars_test/`, each with numbers from
00001, `devkit/cars_train_annos.mat` and `cars_test_annos_withlabels.mat` beside the folders or in
`devkit` (fields `fname`, `class`); the test file that the devkit comes with has no classes.

Retrieval takes classes 1 to 98 for training and 99 to 196 for the test (Song et al., "Deep Metric
Learning via Lifted Structured Feature Embedding", CVPR 2016). The split of images, by folder or by
the field `test`, is another task, with the same classes on both sides: both folders are read
together, and boxes are not used. Keys differ between the releases.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.datasets.contract import PLAIN, Count, Dataset, Variant
from pipelines.datasets.folders import find_layout
from pipelines.datasets.lists import place_listed
from pipelines.datasets.manifest import build_manifest
from pipelines.datasets.matlab import load_matlab
from pipelines.datasets.splits import class_name, split_classes
from pipelines.errors import UserError

KNOWN_NAMES = ("CARS", "cars196", "stanford_cars")
LAYOUTS = {"one folder": ("car_ims",), "split": ("cars_train", "cars_test")}
CLASSES = 196
LAST_TRAIN = 98
WITH_LABELS = "cars_test_annos_withlabels.mat"


def read_cars196(root: Path, _variant: str = PLAIN) -> pa.Table:
    """The manifest of Cars196, from either release; the identity is the class's number, in three
    digits.

    `root` is the folder that holds `car_ims`, or `cars_train` and `cars_test`, or the one above
    it. Raises `UserError` for a missing folder or annotation file, for annotations without
    classes, and for an image or a class that cannot be.
    """
    root, layout = find_layout(root, LAYOUTS, KNOWN_NAMES)
    if layout == "one folder":
        rows = _read_annotations(root, root / "cars_annos.mat", "relative_im_path", "")
    else:
        rows = pa.concat_tables(
            [
                _read_annotations(
                    root, root / "devkit/cars_train_annos.mat", "fname", "cars_train"
                ),
                _read_annotations(root, _test_labels(root), "fname", "cars_test"),
            ]
        )
    return build_manifest(
        root,
        key=rows["key"],
        uri=rows["uri"],
        identity=class_name(rows["number"]),
        split=split_classes(rows["number"], rows["key"], last_train=LAST_TRAIN),
        domain="cars196",
    )


def _test_labels(root: Path) -> Path:
    for folder in (root, root / "devkit"):
        if (folder / WITH_LABELS).is_file():
            return folder / WITH_LABELS
    raise UserError(
        f"{root / WITH_LABELS}: no such file, and the devkit's cars_test_annos.mat has no classes; "
        "get it from the dataset's authors and put it there or into devkit"
    )


def _read_annotations(root: Path, path: Path, name_field: str, folder: str) -> pa.Table:
    """Columns key, uri and number (the class) of the images that `path` names."""
    found = load_matlab(path, ("annotations",))["annotations"]
    for field in (name_field, "class"):
        if field not in (found.dtype.names or ()):
            raise UserError(
                f"{path}: its annotations have no field {field}; take the file with labels that "
                "the dataset's authors give"
            )
    names = [_single(cell) for cell in found[name_field].flat]
    numbers = [_single(cell) for cell in found["class"].flat]
    for name, number in zip(names, numbers, strict=True):
        if not (isinstance(name, str) and isinstance(number, int) and 1 <= number <= CLASSES):
            raise UserError(
                f"{path}: gives {name!r} the class {number!r}, which must be a file name and a "
                f"number from 1 to {CLASSES}; take it anew from the archive"
            )
    placed = place_listed(root, folder, pa.array(names, pa.string()), path)
    return pa.table(placed | {"number": pa.array(numbers, pa.int32())})


def _single(cell: Any) -> Any:
    """The one value of a MATLAB array, None where it holds none or several."""
    return cell.item() if cell.size == 1 else None


CARS196 = Dataset(
    title="Cars196",
    source='Krause et al., "3D Object Representations for Fine-Grained Categorization", 2013',
    layout="car_ims and cars_annos.mat; or cars_train, cars_test, devkit and the test's labels",
    read=read_cars196,
    protocol="leave_one_out",
    protocol_note="Classes 1 to 98 train and 99 to 196 test; every test image asks all others. "
    "Boxes are not used.",
    terms="non-commercial research only",
    variants={
        PLAIN: Variant(
            counts={
                "train": Count(images=8_054, identities=98),
                "query": Count(images=98, identities=98),
                "gallery": Count(images=8_033, identities=98),
            }
        )
    },
)
