"""University-1652 (Zheng et al., "University-1652: A Multi-view Multi-source Benchmark for
Drone-based Geo-localization", ACM MM 2020): buildings from a satellite, a drone and the street.

`train/VIEW/BUILDING/` and `test/{query,gallery}_VIEW/BUILDING/` hold the images; a building is four
digits, in one numbering. The variant is the direction of search: which view asks for which. All
directions train on the same folders, the fourth view `google` (pictures found on the web, none for
some buildings) included; `view` says which image is which. `4K_drone` is not read.

The gallery holds buildings of other universities that no query asks for (role distractor). There
are no cameras: every image of the building is right.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.datasets.contract import Count, Dataset, Variant
from pipelines.datasets.folders import find_root, list_folders, list_images, require_folder
from pipelines.datasets.manifest import build_manifest, join_path
from pipelines.errors import UserError

KNOWN_NAMES = ("University-Release", "University-1652", "university1652")
TRAIN_VIEWS = ("satellite", "drone", "street", "google")
BUILDING_DIGITS = 4
COLUMNS = ("key", "uri", "identity", "view", "split")


def read_university1652(root: Path, variant: str = "satellite_to_drone") -> pa.Table:
    """The manifest of University-1652 for the direction `variant`.

    `root` is the folder that holds `train` and `test`, or the one above it. Raises `UserError` for
    a missing folder, for a folder that is not named as a building, and for an image outside one.
    """
    root = find_root(root, ("train", "test"), KNOWN_NAMES)
    query_view, gallery_view = variant.split("_to_")
    train = [_read_view(root, f"train/{view}", view, "train") for view in TRAIN_VIEWS]
    query = _read_view(root, f"test/query_{query_view}", query_view, "query")
    gallery = _read_view(root, f"test/gallery_{gallery_view}", gallery_view, "gallery")
    rows = pa.concat_tables([*train, query, gallery])
    asked = pc.is_in(rows["identity"], query["identity"])
    others = pc.and_not(pc.equal(rows["split"], "gallery"), asked)
    return build_manifest(
        root,
        **{name: rows[name] for name in COLUMNS},
        role=pc.if_else(others, "distractor", "normal"),
        domain="university1652",
    )


def _read_view(root: Path, folder: str, view: str, split: str) -> pa.Table:
    require_folder(root / folder)
    outside = list_images(root / folder)
    if len(outside):
        raise UserError(
            f"{root / folder / pc.min(outside).as_py()}: lies outside any building's folder; "
            "take it away or put it into its building's"
        )
    paths: list[pa.ChunkedArray] = []
    buildings: list[pa.Array] = []
    for building in list_folders(root / folder):
        if not (building.isdecimal() and len(building) == BUILDING_DIGITS):
            raise UserError(
                f"{root / folder / building}: is not named as a building, by {BUILDING_DIGITS} "
                "digits; take the folder away"
            )
        names = list_images(root / folder / building)
        paths += join_path(building, names).chunks
        buildings.append(pa.repeat(building, len(names)))
    path = pa.chunked_array(paths, pa.string()).combine_chunks()
    values = (
        join_path(folder, path),
        join_path(root / folder, path),
        pa.chunked_array(buildings, pa.string()).combine_chunks(),
        pa.repeat(view, len(path)),
        pa.repeat(split, len(path)),
    )
    return pa.table(dict(zip(COLUMNS, values, strict=True)))


def _direction(query: str, asked: int, gallery: str, images: int, **more: int) -> Variant:
    """`more`: identities and distractors of the gallery, where they are known."""
    return Variant(
        text=f"find the {gallery} images of the building on a {query} image",
        counts={
            "train": Count(images=50_218, identities=701),
            "query": Count(images=asked, identities=701),
            "gallery": Count(images=images, identities=more.get("identities")),
        },
        distractors=more.get("distractors"),
    )


UNIVERSITY1652 = Dataset(
    title="University-1652",
    source='Zheng et al., "University-1652", ACM MM 2020',
    layout="train/VIEW/BUILDING, test/query_VIEW/BUILDING, test/gallery_VIEW/BUILDING",
    read=read_university1652,
    protocol="university",
    protocol_note="Figures of one direction say nothing of another. Of the training images 38,555 "
    "are satellite or drone, which are all that some papers train on.",
    terms="research only, on request, not to be passed on",
    variants={
        "satellite_to_drone": _direction(
            "satellite", 701, "drone", 51_355, identities=701, distractors=13_500
        ),
        "drone_to_satellite": _direction(
            "drone", 37_855, "satellite", 951, identities=701, distractors=250
        ),
        "street_to_satellite": _direction(
            "street", 2_579, "satellite", 951, identities=701, distractors=250
        ),
        "satellite_to_street": _direction("satellite", 701, "street", 2_921),
    },
)
