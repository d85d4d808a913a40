"""MSMT17 (Wei et al., "Person Transfer GAN to Bridge Domain Gap", CVPR 2018) in three layouts.

V1 has `train/` and `test/`, V2 (blurred faces) `mask_train_v2/` and `mask_test_v2/`; beside them
`list_{train,val,query,gallery}.txt` give a line `PATH PERSON` an image. A file name such as
`0000_000_01_0303morning_0008_0.jpg` says person, running number, camera, day and part of the day,
frame and box, between `_`; some names go on after that. The repack of LEViT and others has Market's
folders with `PPPP_cCC_NNNN.jpg`; it puts the validation images into the training folder.

Train and test count people from 0, each on its own: test identities are `test-0000` and so on.

Variants: `trainval` trains on both lists (TransReID, LEViT, FusionReID), `train` on the first only
(torchreid, fast-reid); figures of the two do not compare.

time = (MMDD * 3 + part of the day) * 10,000,000 + frame: ordered inside one camera as far as frames
of one part of a day are; unknown in the repack.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.contract import Count, Dataset, Variant
from pipelines.datasets.folders import find_layout, match_folders, name_groups
from pipelines.datasets.lists import match_lines, place_listed
from pipelines.datasets.manifest import Column, build_manifest, camera_name
from pipelines.errors import UserError

REPACK = "repack"
LAYOUTS = {
    "V1": ("train", "test"),
    "V2": ("mask_train_v2", "mask_test_v2"),
    REPACK: ("bounding_box_train", "query", "bounding_box_test"),
}
KNOWN_NAMES = ("MSMT17_V1", "MSMT17_V2", "MSMT17", "msmt17")
LISTS = {"train": "train", "val": "train", "query": "query", "gallery": "gallery"}
LINE = r"^(?P<path>\S.*?)\s+(?P<person>\d{1,9})$"
LINE_EXAMPLE = "PATH PERSON"
PATH = (
    r"^(?:.*/)?[^_/]+_[^_/]+_(?P<camera>\d{1,4})"
    r"(?:_(?P<day>\d{4})(?P<part>morning|noon|afternoon)_(?P<frame>\d{1,6}))?(?:[_.][^/]*)?$"
)
PARTS = ("morning", "noon", "afternoon")
FRAMES_PER_PART = 10_000_000
REPACK_FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
REPACK_NAME = r"^(?P<person>\d{1,9})_c(?P<camera>\d{1,4})_\d+(?:[_.].*)?$"
REPACK_EXAMPLE = "PPPP_cCC_NNNN.jpg"


def read_msmt17(root: Path, variant: str = "trainval") -> pa.Table:
    """The manifest of MSMT17; the layout is seen from the folders.

    `root` is the folder that holds them, or the one above it. Raises `UserError` for a missing
    folder or list, a line or a name that does not follow the rule, a listed path that leads out of
    the root, and for the variant `train` of the repack, which does not say what it was.
    """
    root, layout = find_layout(root, LAYOUTS, KNOWN_NAMES)
    if layout == REPACK:
        rows = _read_repack(root, variant)
    else:
        splits = {
            name: split for name, split in LISTS.items() if (name, variant) != ("val", "train")
        }
        rows = pa.concat_tables(
            _read_list(root, name, split, LAYOUTS[layout]) for name, split in splits.items()
        )
    person = pc.utf8_lpad(rows["person"], 4, "0")
    tested = pc.binary_join_element_wise("test", person, "-")
    return build_manifest(
        root,
        key=rows["key"],
        uri=rows["uri"],
        identity=pc.if_else(pc.equal(rows["split"], "train"), person, tested),
        camera=camera_name(rows["camera"]),
        time=rows["time"],
        split=rows["split"],
        domain="msmt17",
    )


def _read_list(root: Path, name: str, split: str, folders: tuple[str, ...]) -> pa.Table:
    source = root / f"list_{name}.txt"
    listed = match_lines(source, LINE, LINE_EXAMPLE)
    train, test = folders
    placed = place_listed(root, train if split == "train" else test, listed["path"], source)
    fields = pc.extract_regex(listed["path"], pattern=PATH)
    row = pc.index(pc.is_null(fields), True).as_py()
    if row >= 0:
        raise UserError(
            f"{source}: lists {listed['path'][row].as_py()}, whose third field between _ is no "
            "camera number; expected a name such as 0000_000_01_0303morning_0008_0.jpg"
        )
    said = name_groups(fields)
    return pa.table(
        placed
        | {
            "person": listed["person"],
            "camera": said["camera"],
            "time": _time(said),
            "split": pa.repeat(split, len(listed)),
        }
    )


def _time(said: dict[str, Column]) -> Column:
    known = pc.not_equal(said["day"], "")
    day, frame = (
        pc.cast(pc.if_else(known, said[name], None), pa.int64()) for name in ("day", "frame")
    )
    part = pc.cast(pc.index_in(said["part"], pa.array(PARTS)), pa.int64())
    return pc.add(pc.multiply(pc.add(pc.multiply(day, len(PARTS)), part), FRAMES_PER_PART), frame)


def _read_repack(root: Path, variant: str) -> pa.Table:
    if variant == "train":
        raise UserError(
            f"{root}: bounding_box_train of this repack holds train and validation images and does "
            "not say which is which; use dataset=msmt17:trainval, or the original lists"
        )
    rows = match_folders(root, REPACK_FOLDERS, REPACK_NAME, REPACK_EXAMPLE)
    return rows.append_column("time", pa.nulls(len(rows), pa.int64()))


TEST_COUNTS = {
    "query": Count(images=11_659, identities=3_060),
    "gallery": Count(images=82_161, identities=3_060),
}
MSMT17 = Dataset(
    title="MSMT17",
    source='Wei et al., "Person Transfer GAN to Bridge Domain Gap for Person Re-Identification", '
    "CVPR 2018",
    layout="train, test (V1) or mask_train_v2, mask_test_v2 (V2) with list_*.txt; or "
    "bounding_box_train, query, bounding_box_test with PPPP_cCC_NNNN.jpg",
    read=read_msmt17,
    protocol_note="Say what was trained on: 32,621 images with the validation list, 30,248 "
    "without. V2 has blurred faces; its figures are not those of V1.",
    terms="research only, on request from its authors, not to be passed on",
    variants={
        "trainval": Variant(
            text="trains on the train and validation lists (TransReID, LEViT, FusionReID)",
            counts={"train": Count(images=32_621, identities=1_041)} | TEST_COUNTS,
            cameras=15,
        ),
        "train": Variant(
            text="trains on the train list only (torchreid, fast-reid)",
            counts={"train": Count(images=30_248, identities=1_041)} | TEST_COUNTS,
            cameras=15,
        ),
    },
)
