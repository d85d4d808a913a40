"""The images of `cuhk-03.mat`, written out as PNG files.

The file is MATLAB 7.3, so HDF5: `labeled` and `detected` are cells of five camera pairs, each a
cell of people by ten images, of which 1 to 5 are of the first view and 6 to 10 of the second; an
image that was not taken is an empty cell. MATLAB keeps the last dimension first, so an image comes
as [channel, width, height] and a pair as [ten, people].

The files are named `PAIR_PERSON_VIEW_INDEX.png`, such as `1_001_1_01.png`, which is also what the
lists of the new protocol call them. Memory: one image at a time.

Legend: C channels, W width, H height in pixels.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from filelock import FileLock
from PIL import Image

from pipelines.errors import UserError

if TYPE_CHECKING:
    import h5py

RELEASE = "cuhk03_release/cuhk-03.mat"
FIRST_VIEW = 5
"""So many of a person's images are of the first view, the rest of the second."""
DAMAGED = "take cuhk-03.mat anew from the archive"


def extract_images(root: Path, variant: str) -> Path:
    """The folder `root/images_VARIANT`, written from `cuhk-03.mat` unless it is there.

    The images are written into a hidden folder that gets its name when all are there, so that a
    broken run leaves nothing that looks whole; runs at the same time wait for one another. Raises
    `UserError` for a file that is missing or damaged and for a root that cannot be written to.
    """
    folder = root / f"images_{variant}"
    if folder.is_dir():
        return folder
    archive = root / RELEASE
    if not archive.is_file():
        raise UserError(
            f"{archive}: no such file; put it there, or the images that other tools took from it "
            f"into {folder}"
        )
    try:
        with FileLock(root / f".images_{variant}.lock"):
            if not folder.is_dir():
                click.echo(f"writing the images of {archive} to {folder}", err=True)
                _write_folder(archive, variant, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror or error}; make room and let it be "
            "written to, or read a copy of the dataset that can be"
        ) from error
    return folder


def _write_folder(archive: Path, variant: str, folder: Path) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        _write_images(archive, variant, part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_images(archive: Path, variant: str, folder: Path) -> None:
    import h5py

    try:
        release = h5py.File(archive, "r")
    except OSError as error:
        raise UserError(f"{archive}: is no whole HDF5 file ({error}); {DAMAGED}") from error
    with release:
        try:
            for name, image in _list_cells(release, variant):
                _write_image(image, archive, folder / name)
        except (KeyError, ValueError, IndexError, RuntimeError, TypeError) as error:
            raise UserError(
                f"{archive}: is not laid out as released ({error}); {DAMAGED}"
            ) from error


def _list_cells(release: "h5py.File", variant: str) -> Iterator[tuple[str, "h5py.Dataset"]]:
    """Every cell of a person's images, with the name that its file gets."""
    for pair, cell in enumerate(release[variant][()].ravel(), start=1):
        cells = release[cell][()]
        for person in range(cells.shape[1]):
            for index in range(cells.shape[0]):
                view = 1 if index < FIRST_VIEW else 2
                name = f"{pair}_{person + 1:03d}_{view}_{index + 1:02d}.png"
                yield name, release[cells[index, person]]


def _write_image(image: "h5py.Dataset", archive: Path, path: Path) -> None:
    """One [C, W, H] image to its file; an empty cell, which has fewer dimensions, to none."""
    if image.ndim < 3:
        return
    if image.dtype != "uint8" or image.ndim != 3 or image.shape[0] != 3:
        raise UserError(
            f"{archive}: {path.name} is {image.dtype} {list(image.shape)} and not a uint8 image of "
            f"three channels; {DAMAGED}"
        )
    try:
        pixels_CWH = image[()]
    except OSError as error:
        raise UserError(f"{archive}: {path.name} cannot be read ({error}); {DAMAGED}") from error
    Image.fromarray(pixels_CWH.transpose(2, 1, 0)).save(path, format="PNG")
