"""VeRi-776 (Liu et al., "Large-scale Vehicle Re-identification in Urban Surveillance Videos", ICME
2016).

`image_train/`, `image_query/` and `image_test/` (the gallery) hold files named
`VVVV_cCCC_TTTTTTTT_I.jpg`: vehicle, camera, time, number. What counts is listed in
`name_train.txt`, `name_query.txt` and `name_test.txt`; without a list the folder counts. Every
query lies in `image_test` a second time: the keys differ by the folder, and any junk rule that
leaves out the query's own camera leaves the copy out. Viewpoints that others annotated later cover
a part of the images only and are not read.

`train_label.xml` and `test_label.xml` say vehicle and camera again. They are declared gb2312, which
many XML parsers do not know; a file that is there must agree with the names.

time = TTTTTTTT: ordered inside one camera.
"""

import re
from pathlib import Path
from xml.parsers import expat

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.contract import PLAIN, Count, Dataset, Variant
from pipelines.datasets.folders import find_root, match_names
from pipelines.datasets.lists import match_lines, place_listed
from pipelines.datasets.manifest import build_manifest, camera_name
from pipelines.errors import UserError

FOLDERS = {"image_train": "train", "image_query": "query", "image_test": "gallery"}
LISTS = {
    "image_train": "name_train.txt",
    "image_query": "name_query.txt",
    "image_test": "name_test.txt",
}
LABELS = ("train_label.xml", "test_label.xml")
ATTRIBUTES = ("imageName", "vehicleID", "cameraID")
KNOWN_NAMES = ("VeRi", "VeRi_with_plate", "VeRi-776", "veri776")
NAME = r"^(?P<name>(?P<identity>\d{4})_c(?P<camera>\d{3})_(?P<time>\d{8})_\d+(?:\.[A-Za-z]+)+)$"
EXAMPLE = "VVVV_cCCC_TTTTTTTT_I.jpg"


def read_veri776(root: Path, _variant: str = PLAIN) -> pa.Table:
    """The manifest of VeRi-776.

    `root` is the folder that holds the three, or the one above it. Raises `UserError` for a missing
    folder, a name that does not follow the rule, and labels that disagree with a name.
    """
    root = find_veri776(root)
    for labels in LABELS:
        if (root / labels).is_file():
            _check_labels(root / labels)
    parts = []
    for folder, split in FOLDERS.items():
        rows = read_names(root, folder)
        parts.append(rows.append_column("split", pa.repeat(split, len(rows))))
    rows = pa.concat_tables(parts)
    return build_manifest(
        root,
        key=rows["key"],
        uri=rows["uri"],
        identity=rows["identity"],
        camera=camera_name(rows["camera"]),
        time=pc.cast(rows["time"], pa.int64()),
        split=rows["split"],
        domain="veri776",
    )


def find_veri776(root: Path) -> Path:
    """The dataset's folder: `root`, or one in it."""
    return find_root(root, tuple(FOLDERS), KNOWN_NAMES)


def read_names(root: Path, folder: str) -> pa.Table:
    """Columns key, uri, name, identity, camera and time (text) of the images of `root/folder`, in
    the order of its list, or of the folder where there is no list."""
    path = root / LISTS[folder]
    if not path.is_file():
        return match_names(root, folder, NAME, EXAMPLE)
    listed = match_lines(path, NAME, EXAMPLE)
    placed = place_listed(root, folder, listed["name"], path)
    return pa.table(placed | {name: listed[name] for name in listed.column_names})


def _check_labels(path: Path) -> None:
    """Refuse labels that say another vehicle or camera than the image's name."""
    items = _read_items(path)
    if not items:
        raise UserError(f"{path}: labels no image; take it anew from the archive")
    for name, vehicle, camera in items:
        said = re.match(NAME, name, re.ASCII)
        if said is None:
            raise UserError(f"{path}: labels {name!r}, which is not named {EXAMPLE}; correct it")
        if (vehicle, camera) != (said["identity"], f"c{said['camera']}"):
            raise UserError(
                f"{path}: labels {name} as vehicle {vehicle!r} of camera {camera!r}; correct it, "
                "or take it away, then the names alone count"
            )


def _read_items(path: Path) -> list[tuple[str, str, str]]:
    """(imageName, vehicleID, cameraID) of every Item; no entity is ever expanded."""
    items = []

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "Item":
            image, vehicle, camera = (attributes.get(name, "") for name in ATTRIBUTES)
            items.append((image, vehicle, camera))

    def refuse(*_declaration: object) -> None:
        raise UserError(f"{path}: declares a document type, which labels need not; take it out")

    parser = expat.ParserCreate("utf-8")
    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(_decode(path).encode(), True)
    except expat.ExpatError as error:
        raise UserError(f"{path}: is no XML: {error}; take it anew from the archive") from error
    return items


def _decode(path: Path) -> str:
    """The text of a file in UTF-8, or in gb2312 by its superset gb18030; what it declares does not
    count, since copies were saved anew in the other."""
    data = path.read_bytes()
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise UserError(f"{path}: is neither UTF-8 nor gb2312; take it anew from the archive")


VERI776 = Dataset(
    title="VeRi-776",
    source='Liu et al., "Large-scale Vehicle Re-identification in Urban Surveillance Videos", 2016',
    layout="image_train, image_query, image_test with VVVV_cCCC_TTTTTTTT_I.jpg, name_*.txt",
    read=read_veri776,
    protocol_note="market leaves out the query's vehicle under the query's camera, with the step "
    "AP, as most papers do; veri_lists takes the owners' right and junk images from their lists, "
    "with the trapezoid AP.",
    terms="research only, on request, not to be passed on",
    variants={
        PLAIN: Variant(
            counts={
                "train": Count(images=37_778, identities=576),
                "query": Count(images=1_678, identities=200),
                "gallery": Count(images=11_579, identities=200),
            },
            cameras=20,
        )
    },
)
