"""PKU-Reid (Ma et al., "Orientation Driven Bag of Appearances", 2016) as LA-TF++ laid it out.

`train/<person>/` and `val/{query,gallery}/<person>/` hold files named `<camera>_<angle>.png`: two
cameras, eight angles; `val/all_imgs` repeats the validation images and is not read. 17 of the 28
queries lie byte for byte in the gallery too; they stay in the manifest, since published figures of
this set count them. A copy is under the query's camera, so Market's rule (leave out the query's
identity under the query's camera) takes it out; without that rule the query itself wins rank 1.

The person numbers of train and val are one numbering, and no person is in both.
"""

from pathlib import Path

import pyarrow as pa

from pipelines.datasets.contract import PLAIN, Count, Dataset, Variant
from pipelines.datasets.folders import find_root, list_folders, match_names
from pipelines.datasets.manifest import build_manifest, camera_name
from pipelines.errors import UserError

FOLDERS = {"train": "train", "val/query": "query", "val/gallery": "gallery"}
KNOWN_NAMES = ("pku-reid-col780", "pku_reid", "PKU-Reid")
EXAMPLE = "CAMERA_ANGLE.png such as 01_3.png"
NAME = r"^(?P<camera>\d{1,4})_(?P<angle>\d{1,2})\.[A-Za-z]+$"


def read_pku_reid(root: Path, _variant: str = PLAIN) -> pa.Table:
    """The manifest of PKU-Reid; `view` is the angle, 1 to 8.

    `root` is the folder that holds `train` and `val`, or the one above it. Raises `UserError` for a
    missing folder and for an image whose name does not follow the rule.
    """
    root = find_root(root, tuple(FOLDERS), KNOWN_NAMES)
    parts = [
        _read_person(root, f"{folder}/{person}", person, split)
        for folder, split in FOLDERS.items()
        for person in list_folders(root / folder)
    ]
    if not parts:
        raise UserError(f"{root}: holds no person's folder; expected train/PERSON/CAMERA_ANGLE.png")
    rows = pa.concat_tables(parts)
    columns = {name: rows[name] for name in rows.column_names}
    return build_manifest(root, **columns, domain="pku_reid")


def _read_person(root: Path, folder: str, person: str, split: str) -> pa.Table:
    rows = match_names(root, folder, NAME, EXAMPLE)
    return pa.table(
        {
            "key": rows["key"],
            "uri": rows["uri"],
            "identity": pa.repeat(person, len(rows)),
            "camera": camera_name(rows["camera"]),
            "view": rows["angle"],
            "split": pa.repeat(split, len(rows)),
        }
    )


PKU_REID = Dataset(
    title="PKU-Reid, as LA-TF++ laid it out",
    source='Ma et al., "Orientation Driven Bag of Appearances", 2016; LA-TF++, 2021',
    layout="train, val/query, val/gallery with PERSON/CAMERA_ANGLE.png",
    read=read_pku_reid,
    protocol_note="17 of the 28 queries lie byte for byte in the gallery. Published figures are "
    "those of latf_legacy, which ranks them; market takes them out.",
    terms="CC BY-NC-SA 4.0",
    variants={
        PLAIN: Variant(
            counts={
                "train": Count(images=992, identities=62),
                "query": Count(images=28, identities=12),
                "gallery": Count(images=181, identities=12),
            },
            cameras=2,
        )
    },
)
