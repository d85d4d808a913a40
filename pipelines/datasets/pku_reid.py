"""PKU-Reid (Ma et al., "Orientation Driven Bag of Appearances", 2016) as LA-TF++ laid it out.

`train/<person>/` and `val/{query,gallery}/<person>/` hold files named `<camera>_<angle>.png`: two
cameras, eight angles; `val/all_imgs` repeats the validation images and is not read. 992 / 28 / 181
images. 17 of the 28 queries lie byte for byte in the gallery too; they stay in the manifest, since
published figures of this set count them. A copy is under the query's camera, so Market's rule
(leave out the query's identity under the query's camera) takes it out; without that rule the query
itself wins rank 1.

The person numbers of train and val are one numbering, and no person is in both.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.folders import find_root, list_folders, list_images
from pipelines.datasets.manifest import build_manifest, camera_name, join_path
from pipelines.errors import UserError

FOLDERS = {"train": "train", "val/query": "query", "val/gallery": "gallery"}
KNOWN_NAMES = ("pku-reid-col780", "pku_reid", "PKU-Reid")
NAME = r"^(?P<camera>\d{1,4})_(?P<angle>\d{1,2})\.[A-Za-z]+$"


def read_pku_reid(root: Path) -> pa.Table:
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
    names = list_images(root / folder)
    fields = pc.extract_regex(names, pattern=NAME)
    unlike = names.filter(pc.is_null(fields))
    if len(unlike):
        raise UserError(
            f"{root / folder / pc.min(unlike).as_py()}: not named CAMERA_ANGLE.png such as "
            "01_3.png; rename it or take it away"
        )
    return pa.table(
        {
            "key": join_path(folder, names),
            "uri": join_path(root / folder, names),
            "identity": pa.repeat(person, len(names)),
            "camera": camera_name(pc.struct_field(fields, "camera")),
            "view": pc.struct_field(fields, "angle"),
            "split": pa.repeat(split, len(names)),
        }
    )
