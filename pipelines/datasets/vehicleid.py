"""PKU VehicleID V1.0 (Liu et al., "Deep Relative Distance Learning: Tell the Difference Between
Similar Vehicles", CVPR 2016).

`image/NAME.jpg` holds all images; `train_test_split/train_list.txt` and `test_list_SIZE.txt` list
them, a line `NAME VEHICLE` each, the names without suffix. The vehicles of all lists share one
numbering, and none is in the training list and in a test list. No camera is known.

The test lists do not say what is asked. The custom is one image a vehicle in the gallery, drawn at
random, and all others as queries; here a hash of the name draws it, so that the same list gives the
same gallery everywhere. Protocol `vehicleid` draws again, several times, when it evaluates. A
vehicle with a single image has it in the gallery.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.contract import Count, Dataset, Variant
from pipelines.datasets.folders import find_root
from pipelines.datasets.lists import match_lines, place_listed
from pipelines.datasets.manifest import build_manifest
from pipelines.datasets.splits import first_of_each, name_numbers

PARTS = ("image", "train_test_split")
KNOWN_NAMES = ("VehicleID_V1.0", "VehicleID")
LINE = r"^(?P<name>[\w-]+)\s+(?P<identity>\d+)$"
EXAMPLE = "NAME VEHICLE such as 0000001 123"
TRAIN = Count(images=113_346, identities=13_164)
TEST_IMAGES = {"800": 6_493, "1600": 13_377, "2400": 19_777}
LARGER_TESTS = ("3200", "6000", "13164")


def read_vehicleid(root: Path, variant: str = "800") -> pa.Table:
    """The manifest of VehicleID with the test list of `variant` vehicles.

    `root` is the folder that holds `image` and `train_test_split`, or the one above it. Raises
    `UserError` for a missing folder or list, and for a line that is not as it should be.
    """
    root = find_root(root, PARTS, KNOWN_NAMES)
    train = _read_list(root, "train_list.txt")
    test = _read_list(root, f"test_list_{variant}.txt")
    found = first_of_each(test["identity"], name_numbers(test["key"]), test["key"])
    train = train.append_column("split", pa.repeat("train", len(train)))
    test = test.append_column("split", pc.if_else(found, "gallery", "query"))
    rows = pa.concat_tables([train, test])
    columns = {name: rows[name] for name in rows.column_names}
    return build_manifest(root, **columns, domain="vehicleid")


def _read_list(root: Path, name: str) -> pa.Table:
    path = root / "train_test_split" / name
    rows = match_lines(path, LINE, EXAMPLE)
    names = pc.binary_join_element_wise(rows["name"], ".jpg", "")
    placed = place_listed(root, "image", names, path)
    return pa.table(placed | {"identity": rows["identity"]})


def _variant(size: str) -> Variant:
    counts = {"train": TRAIN, "gallery": Count(images=int(size), identities=int(size))}
    if size in TEST_IMAGES:
        counts["query"] = Count(images=TEST_IMAGES[size] - int(size))
    return Variant(text=f"the test list of {int(size):,} vehicles", counts=counts)


VEHICLEID = Dataset(
    title="PKU VehicleID",
    source='Liu et al., "Deep Relative Distance Learning", CVPR 2016',
    layout="image/NAME.jpg; train_test_split/train_list.txt and test_list_SIZE.txt",
    read=read_vehicleid,
    protocol="vehicleid",
    protocol_note="One image a vehicle is the gallery, drawn at random: published figures are of "
    "one draw or the mean of ten, and differ by the draw. The paper's tests are 800, 1600, 2400.",
    terms="research only, on request, not to be passed on",
    variants={size: _variant(size) for size in (*TEST_IMAGES, *LARGER_TESTS)},
)
