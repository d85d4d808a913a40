"""The answer to one query as one picture: the query on the left, its hits in order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageDraw, ImageFont

from pipelines.store import Folder
from pipelines.thumbnails import Thumbnail, load_thumbnail

TILE_HEIGHT = 224
TILE_WIDTHS = (112, 224)
HITS_A_ROW = 10
GAP = 18
FRAME = 4
LINE = 16
CAPTION_LINES = 3
PAPER = (250, 250, 250)
INK = (30, 30, 30)
BLUE, GREEN, RED, NEUTRAL = (38, 84, 160), (0, 128, 60), (200, 30, 40), (140, 140, 140)


class ShownHit(Protocol):
    """What the sheet shows of a hit; `pipelines.gallery.Hit` is one."""

    @property
    def identity(self) -> str | None: ...
    @property
    def camera(self) -> str | None: ...
    @property
    def score(self) -> float: ...
    @property
    def uri(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class _Tile:
    thumbnail: Thumbnail
    caption: tuple[str, ...]
    colour: tuple[int, int, int]


def contact_sheet(
    path: str | Path,
    query_image: str,
    hits: Sequence[ShownHit],
    *,
    query_identity: str | None = None,
    reranked: bool = False,
) -> None:
    """Write the picture as PNG.

    Args:
        path: file to write; it appears only when it is complete.
        query_image: path or address of the query.
        hits: best first; ten a row.
        query_identity: who the query is, where that is known: then hits of the identity are framed
            green with a tick, others red with a cross.
        reranked: the scores are minus distances; said below the query.
    """
    box = _tile_box([query_image, *(hit.uri for hit in hits)])
    query = _Tile(
        thumbnail=load_thumbnail(query_image, box),
        caption=(
            "query",
            query_identity or Path(query_image).name,
            *(["re-ranked"] if reranked else []),
        ),
        colour=BLUE,
    )
    tiles = [_hit_tile(rank, hit, query_identity, box) for rank, hit in enumerate(hits, start=1)]
    rows = [tiles[i : i + HITS_A_ROW] for i in range(0, len(tiles), HITS_A_ROW)] or [[]]
    cell = (box[0] + GAP, box[1] + CAPTION_LINES * LINE + 2 * GAP)
    columns = 1 + max(len(row) for row in rows)
    # the query stands apart by one more gap
    size = (columns * cell[0] + 3 * GAP, len(rows) * cell[1] + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw(sheet, draw, query, (GAP, GAP), box)
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            corner = (3 * GAP + (x + 1) * cell[0], GAP + y * cell[1])
            _draw(sheet, draw, tile, corner, box)
    place = Folder.open(str(path))
    parent = Folder.open(place.uri.rpartition("/")[0]).make()
    with parent.write(place.name) as stream:
        sheet.save(stream, format="PNG")


def _tile_box(uris: Sequence[str | None]) -> tuple[int, int]:
    """Tiles as wide as the first picture that can be shown, at their height, within limits."""
    limit = (4 * TILE_HEIGHT, 4 * TILE_HEIGHT)
    thumbnails = (load_thumbnail(uri, limit) for uri in uris)
    shape = next((t.picture.size for t in thumbnails if t.problem is None), (1, 2))
    width = round(TILE_HEIGHT * shape[0] / shape[1])
    return min(max(width, TILE_WIDTHS[0]), TILE_WIDTHS[1]), TILE_HEIGHT


def _hit_tile(rank: int, hit: ShownHit, query_identity: str | None, box: tuple[int, int]) -> _Tile:
    colour = NEUTRAL
    if query_identity is not None:
        colour = GREEN if hit.identity == query_identity else RED
    camera = "camera ?" if hit.camera is None else f"camera {hit.camera}"
    return _Tile(
        thumbnail=load_thumbnail(hit.uri, box),
        caption=(f"{rank}.  {hit.score:.3f}", hit.identity or "identity ?", camera),
        colour=colour,
    )


def _draw(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    tile: _Tile,
    corner: tuple[int, int],
    box: tuple[int, int],
) -> None:
    x, y = corner
    width, height = box
    picture = tile.thumbnail.picture
    scale = min(width / picture.width, height / picture.height)
    shown = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(shown, Image.Resampling.BICUBIC)
    sheet.paste(picture, (x + (width - shown[0]) // 2, y + (height - shown[1]) // 2))
    outline = (x - FRAME, y - FRAME, x + width + FRAME - 1, y + height + FRAME - 1)
    draw.rectangle(outline, outline=tile.colour, width=FRAME)
    if tile.colour in (GREEN, RED):
        _draw_mark(draw, (x + width - 18, y + 4), tile.colour)
    for line, text in enumerate(tile.caption):
        font = ImageFont.load_default(size=13)
        place = (x, y + height + FRAME + 2 + line * LINE)
        draw.text(place, _shorten(text, font, width), fill=INK, font=font)


def _draw_mark(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], colour: tuple[int, int, int]
) -> None:
    """A tick or a cross: colour alone does not reach everybody."""
    x, y = corner
    draw.rectangle((x, y, x + 13, y + 13), fill=colour)
    if colour == GREEN:
        draw.line((x + 3, y + 7, x + 6, y + 10, x + 11, y + 3), fill="white", width=2)
    else:
        draw.line((x + 3, y + 3, x + 10, y + 10), fill="white", width=2)
        draw.line((x + 3, y + 10, x + 10, y + 3), fill="white", width=2)


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The end of the text, which tells identities apart, as far as it fits."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text
