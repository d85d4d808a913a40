"""Market-1501's layout (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015).

`bounding_box_train/`, `query/` and `bounding_box_test/` (the gallery) hold files named
`PPPP_cCsS_FFFFFF_BB.jpg`: identity, camera, sequence, frame of the sequence, box in the frame.
Identity -1 marks detections that are neither right nor wrong (role junk); 0000 marks people nobody
asks for and background (role distractor: they stay in the gallery and never match). Identities of
more than four digits and any number of cameras are read as well, since larger sets are packed in
the same way; a suffix may stand twice, as in 24 official files (`1488_c1s6_023021_00.jpg.jpg`).
The official set has 12,936 / 3,368 / 19,732 files.

time = sequence * 1,000,000 + frame: ordered inside one camera; the cameras' clocks differ.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.folders import find_root, list_images
from pipelines.datasets.manifest import build_manifest, camera_name, join_path
from pipelines.errors import UserError

FOLDERS = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
KNOWN_NAMES = ("Market-1501-v15.09.15", "market1501")
NAME = (
    r"^(?P<identity>-1|\d{4,})_c(?P<camera>\d{1,4})s(?P<sequence>\d{1,4})"
    r"_(?P<frame>\d{6})_(?P<box>\d{2,})(?:\.[A-Za-z]+)+$"
)
FRAMES_PER_SEQUENCE = 1_000_000


def read_market1501(root: Path, *, domain: str = "market1501") -> pa.Table:
    """The manifest of a dataset in Market-1501's layout, under the name `domain`.

    `root` is the folder of the three, or the folder that holds it as `Market-1501-v15.09.15`, as
    `market1501` or under the name `domain`. Raises `UserError` for a missing folder and for an
    image whose name does not follow the rule; files that are no images are passed over.
    """
    root = find_root(root, tuple(FOLDERS), (*KNOWN_NAMES, domain))
    parts = [_read_folder(root, folder, split) for folder, split in FOLDERS.items()]
    rows = pa.concat_tables(parts)
    role = pc.case_when(
        pc.make_struct(pc.equal(rows["identity"], "-1"), pc.equal(rows["identity"], "0000")),
        "junk",
        "distractor",
        "normal",
    )
    columns = {name: rows[name] for name in rows.column_names}
    return build_manifest(root, **columns, domain=domain, role=role)


def _read_folder(root: Path, folder: str, split: str) -> pa.Table:
    names = list_images(root / folder)
    fields = pc.extract_regex(names, pattern=NAME)
    unlike = names.filter(pc.is_null(fields))
    if len(unlike):
        raise UserError(
            f"{root / folder / pc.min(unlike).as_py()}: not named PPPP_cCsS_FFFFFF_BB.jpg; "
            "rename it to its identity, camera, sequence and frame, or take it away"
        )
    sequence, frame = (
        pc.cast(pc.struct_field(fields, name), pa.int64()) for name in ("sequence", "frame")
    )
    return pa.table(
        {
            "key": join_path(folder, names),
            "uri": join_path(root / folder, names),
            "identity": pc.struct_field(fields, "identity"),
            "camera": camera_name(pc.struct_field(fields, "camera")),
            "time": pc.add(pc.multiply(sequence, FRAMES_PER_SEQUENCE), frame),
            "split": pa.repeat(split, len(names)),
        }
    )
