"""Own images: a folder an identity, `<root>/<identity>/<image>`.

If the root has the folders `train`, `query` and `gallery`, the identities' folders lie in those and
the split is theirs. Else `manifest.draw_splits` draws it: half of the identities train, the others
test. The camera is read from a token `c` and digits in the file name (`0002_c1s1_000451.jpg`,
`c3-front.png`); without one it is unknown. The dataset's name is that of the root folder, so that
two such folders can share a gallery.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.contract import PLAIN, Dataset
from pipelines.datasets.folders import list_folders, list_images, require_folder
from pipelines.datasets.manifest import SPLITS, build_manifest, camera_name, draw_splits, join_path
from pipelines.errors import UserError

CAMERA = r"(?:^|[^A-Za-z0-9])c(?P<camera>\d{1,4})(?:\D|$)"
COLUMNS = ("key", "uri", "identity", "camera")


def read_identity_folders(root: Path, _variant: str = PLAIN) -> pa.Table:
    """The manifest of a folder of identities' folders.

    Raises `UserError` for a missing or empty folder, for an image outside an identity's folder or
    a folder inside one (neither says who it is), and where only some of the splits have a folder.
    """
    require_folder(root)
    split_folders = [split for split in SPLITS if (root / split).is_dir()]
    if split_folders:
        for split in SPLITS:
            require_folder(root / split)
        parts = [_read_identities(root, split) for split in SPLITS]
        splits = [pa.repeat(split, len(part)) for split, part in zip(SPLITS, parts, strict=True)]
        rows = pa.concat_tables(parts)
        split = pa.chunked_array(splits, pa.string())
    else:
        rows = _read_identities(root, "")
        split = draw_splits(rows["identity"], rows["camera"], rows["key"]) if len(rows) else ""
    columns = {name: rows[name] for name in rows.column_names}
    return build_manifest(root, **columns, split=split, domain=root.name or "identity_folders")


def _read_identities(root: Path, inside: str) -> pa.Table:
    outside = list_images(root / inside)
    if len(outside):
        raise UserError(
            f"{root / inside / pc.min(outside).as_py()}: lies outside any identity's folder; "
            "put every image into a folder that is named for who is in it"
        )
    people = list_folders(root / inside)
    parts = [_read_identity(root, f"{inside}/{person}".lstrip("/"), person) for person in people]
    empty = pa.table({name: pa.array([], pa.string()) for name in COLUMNS})
    return pa.concat_tables([empty, *parts])


def _read_identity(root: Path, folder: str, person: str) -> pa.Table:
    nested = list_folders(root / folder)
    if nested:
        raise UserError(
            f"{root / folder / nested[0]}: a folder inside an identity's folder; "
            "keep the images of an identity side by side in its folder"
        )
    names = list_images(root / folder)
    camera = pc.struct_field(pc.extract_regex(names, pattern=CAMERA), "camera")
    values = (
        join_path(folder, names),
        join_path(root / folder, names),
        pa.repeat(person, len(names)),
        camera_name(camera),
    )
    return pa.table(dict(zip(COLUMNS, values, strict=True)))


IDENTITY_FOLDERS = Dataset(
    title="your images, a folder an identity",
    layout="IDENTITY/IMAGE, optionally under train, query and gallery",
    read=read_identity_folders,
    terms="yours",
)
