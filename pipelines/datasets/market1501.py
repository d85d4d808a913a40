"""Market-1501's layout (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015).

`bounding_box_train/`, `query/` and `bounding_box_test/` (the gallery) hold files named
`PPPP_cCsS_FFFFFF_BB.jpg`: identity, camera, sequence, frame of the sequence, box in the frame.
Identity -1 marks detections that are neither right nor wrong (role junk); 0000 marks people nobody
asks for and background (role distractor: they stay in the gallery and never match). Identities of
more than four digits and any number of cameras are read as well, since larger sets are packed in
the same way; a suffix may stand twice, as in 24 official files (`1488_c1s6_023021_00.jpg.jpg`).

time = sequence * 1,000,000 + frame: ordered inside one camera; the cameras' clocks differ.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.contract import PLAIN, Count, Dataset, Variant
from pipelines.datasets.folders import find_root, match_names
from pipelines.datasets.manifest import build_manifest, camera_name

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
KNOWN_NAMES = ("Market-1501-v15.09.15", "market1501")
NAME = (
    r"^(?P<identity>-1|\d{4,})_c(?P<camera>\d{1,4})s(?P<sequence>\d{1,4})"
    r"_(?P<frame>\d{6})_(?P<box>\d{2,})(?:\.[A-Za-z]+)+$"
)
EXAMPLE = "PPPP_cCsS_FFFFFF_BB.jpg"
FRAMES_PER_SEQUENCE = 1_000_000


def read_market1501(root: Path, _variant: str = PLAIN, *, domain: str = "market1501") -> pa.Table:
    """The manifest of a dataset in Market-1501's layout, under the name `domain`.

    `root` is the folder of the three, or the folder that holds it as `Market-1501-v15.09.15`, as
    `market1501` or under the name `domain`. Raises `UserError` for a missing folder and for an
    image whose name does not follow the rule; files that are no images are passed over.
    """
    root = find_root(root, tuple(FOLDERS), (*KNOWN_NAMES, domain))
    rows = pa.concat_tables(
        _with_split(match_names(root, folder, NAME, EXAMPLE), split)
        for folder, split in FOLDERS.items()
    )
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
        pc.make_struct(pc.equal(identity, "-1"), pc.equal(identity, "0000")),
        "junk",
        "distractor",
        "normal",
    )


def _with_split(rows: pa.Table, split: str) -> pa.Table:
    return rows.append_column("split", pa.array([split] * len(rows), pa.string()))


MARKET1501 = Dataset(
    title="Market-1501",
    source='Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015',
    layout="bounding_box_train, query, bounding_box_test with PPPP_cCsS_FFFFFF_BB.jpg",
    read=read_market1501,
    protocol_note="Its own script takes the trapezoid AP, most later papers the step AP.",
    terms="research only, not to be passed on",
    variants={
        PLAIN: Variant(
            counts={
                "train": Count(images=12_936, identities=751),
                "query": Count(images=3_368, identities=750),
                "gallery": Count(images=19_732, identities=750),
            },
            cameras=6,
            junk=3_819,
            distractors=2_798,
        )
    },
)
