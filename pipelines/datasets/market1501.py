"""Market-1501's layout (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015).

`bounding_box_train/`, `query/` and `bounding_box_test/` (the gallery) hold files named
`PPPP_cCsS_FFFFFF_BB.jpg`: identity, camera, sequence, frame of the sequence, box in the frame.
Identity -1 marks detections that are neither right nor wrong (role junk); 0000 marks people nobody
asks for and background (role distractor: they stay in the gallery and never match). Identities of
more than four digits and any number of cameras are read as well, since larger sets are packed in
the same way; a suffix may stand twice, as in 24 official files (`1488_c1s6_023021_00.jpg.jpg`).

The variant `500k` adds Zheng's distractors: half a million detections that hold none of the people
asked for. Whatever their files are called, all are of identity 0000 and of role distractor; camera
and time are read where the name says them and are unknown elsewhere.

time = sequence * 1,000,000 + frame: ordered inside one camera; the cameras' clocks differ.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.contract import PLAIN, Count, Dataset, Variant
from pipelines.datasets.folders import find_root, list_images, match_folders, name_groups
from pipelines.datasets.manifest import build_manifest, camera_name, join_path
from pipelines.errors import UserError

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
KNOWN_NAMES = ("Market-1501-v15.09.15", "market1501")
NAME = (
    r"^(?P<identity>-1|\d{4,})_c(?P<camera>\d{1,4})s(?P<sequence>\d{1,4})"
    r"_(?P<frame>\d{6})_(?P<box>\d{2,})(?:\.[A-Za-z]+)+$"
)
EXAMPLE = "PPPP_cCsS_FFFFFF_BB.jpg"
FRAMES_PER_SEQUENCE = 1_000_000
EXTRA = "500k"
EXTRA_FOLDERS = ("images", "distractors_500k")
NOBODY = "0000"


def read_market1501(root: Path, variant: str = PLAIN, *, domain: str = "market1501") -> pa.Table:
    """The manifest of a dataset in Market-1501's layout, under the name `domain`.

    `root` is the folder of the three, or the folder that holds it as `Market-1501-v15.09.15`, as
    `market1501` or under the name `domain`. Raises `UserError` for a missing folder and for an
    image whose name does not follow the rule; files that are no images are passed over. The
    variant `500k` also reads `images` or `distractors_500k`, in that folder or beside it.
    """
    root = find_root(root, tuple(FOLDERS), (*KNOWN_NAMES, domain))
    rows = match_folders(root, FOLDERS, NAME, EXAMPLE)
    if variant == EXTRA:
        rows = pa.concat_tables([rows, _read_extra(_extra_folder(root)).select(rows.column_names)])
    sequence, frame = (pc.cast(rows[name], pa.int64()) for name in ("sequence", "frame"))
    return build_manifest(
        root,
        key=rows["key"],
        uri=rows["uri"],
        identity=rows["identity"],
        camera=camera_name(rows["camera"]),
        time=pc.add(pc.multiply(sequence, FRAMES_PER_SEQUENCE), frame),
        split=rows["split"],
        domain=domain,
        role=market_role(rows["identity"]),
    )


def market_role(identity: pa.ChunkedArray) -> pa.ChunkedArray:
    """Roles by Market-1501's convention: -1 junk, 0000 distractor."""
    return pc.case_when(
        pc.make_struct(pc.equal(identity, "-1"), pc.equal(identity, NOBODY)),
        "junk",
        "distractor",
        "normal",
    )


def _extra_folder(root: Path) -> Path:
    places = [place / name for place in (root, root.parent) for name in EXTRA_FOLDERS]
    for place in places:
        if place.is_dir():
            return place
    raise UserError(
        f"{root}: no folder images or distractors_500k in it or beside it; unpack the 500k "
        "distractors there, or take dataset=market1501 without them"
    )


def _read_extra(folder: Path) -> pa.Table:
    names = list_images(folder)
    if len(names) == 0:
        raise UserError(f"{folder}: holds no image; unpack the 500k distractors there")
    said = name_groups(pc.extract_regex(names, pattern=NAME))
    placed = {
        "key": join_path(folder.name, names),
        "uri": join_path(folder, names),
        "identity": pa.repeat(NOBODY, len(names)),
        "split": pa.repeat("gallery", len(names)),
    }
    return pa.table(said | placed)


TRAIN_AND_QUERY = {
    "train": Count(images=12_936, identities=751),
    "query": Count(images=3_368, identities=750),
}
MARKET1501 = Dataset(
    title="Market-1501",
    source='Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015',
    layout="bounding_box_train, query, bounding_box_test with PPPP_cCsS_FFFFFF_BB.jpg",
    read=read_market1501,
    protocol_note="Its own script takes the trapezoid AP, most later papers the step AP.",
    terms="research only, not to be passed on",
    variants={
        PLAIN: Variant(
            counts=TRAIN_AND_QUERY | {"gallery": Count(images=19_732, identities=750)},
            cameras=6,
            junk=3_819,
            distractors=2_798,
        ),
        EXTRA: Variant(
            text="with 500,000 distractors in images or distractors_500k",
            counts=TRAIN_AND_QUERY | {"gallery": Count(images=519_732, identities=750)},
            cameras=6,
            junk=3_819,
            distractors=502_798,
        ),
    },
)
