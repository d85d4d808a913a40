"""Small pictures of images for people: report pages and contact sheets.

An image that cannot be shown becomes a grey tile that says why; a report must not fail because a
picture was moved. Images pass the same `intake` as everywhere: what is shown is what was embedded.
"""

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

from pipelines.images import ImageError, intake
from pipelines.store import Folder

GREY = (128, 128, 128)
JPEG_QUALITY = 85


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """A picture that fits into the asked box."""

    picture: Image.Image
    """RGB, in the image's own aspect; the whole box, grey, if it cannot be shown."""
    problem: str | None
    """Why the image cannot be shown, or None."""

    def data_uri(self) -> str:
        """The picture as a JPEG inside an address, for a page without other files."""
        buffer = BytesIO()
        self.picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
        return "data:image/jpeg;base64," + b64encode(buffer.getvalue()).decode()


def load_thumbnail(uri: str | None, box: tuple[int, int]) -> Thumbnail:
    """The image at a path or address, shrunk into `box` (width, height in pixels)."""
    if not uri:
        return _tile("no picture on record", box)
    place = Folder.open(uri)
    try:
        data = place.fs.cat_file(place.root)
        with Image.open(BytesIO(intake(data).data)) as image:
            picture = image.convert("RGB")
    except FileNotFoundError:
        return _tile("file is missing", box)
    except (ImageError, OSError) as error:
        return _tile(str(error), box)
    picture.thumbnail(box, Image.Resampling.LANCZOS)
    return Thumbnail(picture=picture, problem=None)


def _tile(reason: str, box: tuple[int, int]) -> Thumbnail:
    picture = Image.new("RGB", box, GREY)
    font = ImageFont.load_default(size=max(10, box[0] // 7))
    columns = max(8, int(box[0] / font.getlength("n")) - 1)
    text = "\n".join(wrap(reason, columns)[:6])
    draw = ImageDraw.Draw(picture)
    center = (box[0] / 2, box[1] / 2)
    draw.multiline_text(center, text, fill="white", font=font, anchor="mm", align="center")
    return Thumbnail(picture=picture, problem=reason)
