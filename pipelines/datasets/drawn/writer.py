"""From an address (identity, camera, index) to a picture, and from a plan to a folder."""

from io import BytesIO
from math import pi
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.datasets.drawn.body import View
from pipelines.datasets.drawn.camera import camera as camera_of
from pipelines.datasets.drawn.camera import expose
from pipelines.datasets.drawn.config import DISTRACTOR, JUNK, DrawnConfig, plan
from pipelines.datasets.drawn.figure import paint_figure
from pipelines.datasets.drawn.person import person
from pipelines.datasets.drawn.scene import background, occlude
from pipelines.datasets.drawn.streams import Stream
from pipelines.errors import UserError

PERSON, PASSER_BY = "person", "passer-by"
SUPERSAMPLING = 2
BODY_SHARE = 0.90
"""Height of an average body as a share of the picture."""
OCCLUDED = 0.20
ACCOMPANIED = 0.12
EMPTY = 0.3
"""Share of the distractors that show no person."""


def draw_image(config: DrawnConfig, identity: int, camera: int, index: int) -> np.ndarray:
    """One picture, uint8 [height, width, 3] RGB: a pure function of its arguments.

    `identity` is a person above 0, `config.DISTRACTOR` or `config.JUNK`. About 2 ms on one core.
    """
    random = Stream(config.seed, "image", identity, camera, index)
    height, width = (SUPERSAMPLING * side for side in config.image_size)
    picture = background(config.seed, camera, (width, height), random)
    shown = _who(config, identity, camera, index, random)
    if random.chance(ACCOMPANIED):
        other = (PASSER_BY, random.below(2**32))
        side = 1.0 if random.chance(0.5) else -1.0
        _place(picture, config, camera, other, random, aside=side * random.uniform(0.4, 0.6))
    if shown is not None:
        _place(picture, config, camera, shown, random, badly=identity == JUNK)
    if random.chance(OCCLUDED):
        occlude(picture, random)
    small = picture.reduce(SUPERSAMPLING)
    return expose(small, camera_of(config.seed, camera), random)


def encode_image(config: DrawnConfig, identity: int, camera: int, index: int) -> bytes:
    """The same picture as a JPEG file."""
    buffer = BytesIO()
    picture = Image.fromarray(draw_image(config, identity, camera, index))
    picture.save(buffer, format="JPEG", quality=config.quality)
    return buffer.getvalue()


def draw_dataset(config: DrawnConfig, folder: str | Path) -> int:
    """Write every image of the plan into `folder` in Market-1501's layout; their number.

    Each file appears whole or not at all, and files that are there are written anew, so a call that
    was cut off is simply repeated. Raises `UserError` where the folder holds other files, which
    would be read as part of the dataset, and where it cannot be written.
    """
    folder = Path(folder)
    images = plan(config)
    expected = {path for path, *_ in images}
    try:
        for part in sorted({Path(path).parent for path in expected}):
            (folder / part).mkdir(parents=True, exist_ok=True)
            for entry in (folder / part).iterdir():
                if not entry.name.startswith(".") and f"{part}/{entry.name}" not in expected:
                    raise UserError(
                        f"{entry}: is not of this dataset; draw into a new or an empty folder"
                    )
        for path, identity, camera, index in images:
            whole = folder / path
            part_file = whole.with_name(f".{whole.name}.part")
            part_file.write_bytes(encode_image(config, identity, camera, index))
            part_file.replace(whole)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error
    return len(images)


def _who(
    config: DrawnConfig, identity: int, camera: int, index: int, random: Stream
) -> tuple[str, int] | None:
    """Whose figure is in the picture; nobody in some of the distractors."""
    if identity == DISTRACTOR:
        number = index * config.cameras + camera
        return None if random.chance(EMPTY) else (PASSER_BY, number)
    if identity == JUNK:
        first = config.train_identities + 1
        return PERSON, first + random.below(config.test_identities)
    return PERSON, identity


def _place(
    picture: Image.Image,
    config: DrawnConfig,
    camera: int,
    who: tuple[str, int],
    random: Stream,
    *,
    aside: float = 0.0,
    badly: bool = False,
) -> None:
    """Paint a figure into the picture, as a detector that is a little off would cut it out."""
    seen_by = camera_of(config.seed, camera)
    drawn = person(config.seed, *who)
    width, height = picture.size
    turn, zoom, shift, drop = (random.normal(spread) for spread in (0.35, 0.05, 0.03, 0.015))
    back = pi if random.chance(0.3) else 0.0
    phase = random.uniform(0.0, 2 * pi)
    if badly:
        zoom, shift = zoom + 0.5, shift + (0.45 if shift > 0 else -0.45)
    scale = BODY_SHARE * height * drawn.stature * (1.0 + zoom)
    view = View(
        yaw=seen_by.yaw + turn + back,
        pitch=seen_by.pitch,
        scale=scale,
        x=width * (0.5 + aside + shift),
        ground=height * (0.5 + drop) + 0.5 * scale,
    )
    paint_figure(picture, drawn, view, phase)
