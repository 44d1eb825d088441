"""Contact sheets: answers to searches as one picture of thumbnails with rank, score and name. Pillow alone."""

from __future__ import annotations

import importlib.util
import io
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

from avse.files import check_target, write_bytes
from avse.images import ImageError, ImageSource, read_image

TILE = 220
COLUMNS = 5
MARGIN, GAP, CAPTION = 28, 16, 46
PAPER, EMPTY, INK, GREY, ACCENT = "#ffffff", "#f1f2f4", "#1c1f24", "#7a828e", "#2563c9"

FONT = "DejaVuSans.ttf"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class Tile(NamedTuple):
    """One answer: where its picture lies (None: nowhere), its name, its score."""

    picture: ImageSource | None
    name: str
    score: float | None = None


class Row(NamedTuple):
    """One query: its words, the answers, best first, and the picture that was asked with, if any."""

    title: str
    tiles: Sequence[Tile]
    query: ImageSource | None = None


def contact_sheet(rows: Sequence[Row], out: str | Path, *, columns: int = COLUMNS, force: bool = False) -> Path:
    """Draw every query's title and its answers in lines of ``columns`` tiles, and write a PNG (atomically).

    A picture that is gone or cannot be read is an empty tile with its name. A query's own picture comes first, framed.

    Raises:
        ValueError: No rows.
        FileExistsError, IsADirectoryError: as `avse.files.check_target`.
    """
    out = Path(out)
    if not rows:
        raise ValueError("a contact sheet needs at least one query")
    check_target(out, force)
    width = 2 * MARGIN + columns * TILE + (columns - 1) * GAP
    strips = [_strip(row, width, columns) for row in rows]
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips) + MARGIN), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    write_bytes(out, stream.getvalue())
    return out


def _strip(row: Row, width: int, columns: int) -> Image.Image:
    title = font_of(26)
    lines = _wrap(clean(row.title), title, width - 2 * MARGIN)
    queries = [] if row.query is None else [Tile(row.query, "asked with this picture")]
    tiles = [*queries, *row.tiles]
    head = MARGIN + 34 * len(lines) + 14
    deep = max(1, -(-len(tiles) // columns))
    strip = Image.new("RGB", (width, head + deep * (TILE + CAPTION + GAP)), PAPER)
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + 34 * number), line, INK, title)
    if not tiles:
        draw.text((MARGIN, head), "no answers", GREY, font_of(18))
    for place, tile in enumerate(tiles):
        left = MARGIN + (place % columns) * (TILE + GAP)
        top = head + (place // columns) * (TILE + CAPTION + GAP)
        strip.paste(_thumbnail(tile), (left, top))
        if place < len(queries):
            draw.rectangle((left - 3, top - 3, left + TILE + 2, top + TILE + 2), outline=ACCENT, width=3)
            draw.text((left, top + TILE + 8), fit(tile.name, font_of(15), TILE), ACCENT, font_of(15))
        else:
            _caption(draw, tile, place - len(queries) + 1, left, top + TILE + 6)
    return strip


def _caption(draw: ImageDraw.ImageDraw, tile: Tile, rank: int, left: int, top: int) -> None:
    draw.text((left, top), str(rank), INK, font_of(17))
    if tile.score is not None:
        draw.text((left + TILE, top + 1), f"{tile.score:.3f}", GREY, font_of(15), anchor="ra")
    name = font_of(14)
    draw.text((left, top + 22), fit(clean(tile.name), name, TILE), GREY, name)


def _thumbnail(tile: Tile) -> Image.Image:
    cell = Image.new("RGB", (TILE, TILE), EMPTY)
    reason = "no picture known"
    if tile.picture is not None:
        try:
            picture = ImageOps.contain(read_image(tile.picture, draft=(TILE, TILE)), (TILE, TILE))
            cell.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
            return cell
        except (ImageError, OSError) as error:
            reason = error.reason if isinstance(error, ImageError) else "cannot be read"
    draw = ImageDraw.Draw(cell)
    draw.rectangle((0, 0, TILE - 1, TILE - 1), outline="#c9ced6")
    for line, (text, colour) in enumerate(((tile.name, INK), (reason, GREY))):
        font = font_of(15)
        text = fit(clean(text), font, TILE - 24)
        draw.text((TILE // 2, TILE // 2 - 12 + 24 * line), text, colour, font, anchor="mm")
    return cell


@lru_cache(32)
def font_of(size: int) -> Font:
    """Return a font with letters beyond ASCII where there is one; Pillow's own has none."""
    matplotlib = importlib.util.find_spec("matplotlib")
    own = Path(matplotlib.origin or "").parent / "mpl-data" / "fonts" / "ttf" / FONT if matplotlib else FONT
    for path in (FONT, own):
        try:
            return ImageFont.truetype(str(path), size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def clean(text: str) -> str:
    """Return ``text`` on one line, of letters that `font_of` has; without DejaVu letters lose their accents."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    if isinstance(font := font_of(14), ImageFont.FreeTypeFont) and font.getname()[0] == "DejaVu Sans":
        return text
    plain = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    return "".join(letter for letter in plain if not unicodedata.combining(letter))


def fit(text: str, font: Font, width: int) -> str:
    """Shorten ``text`` in its middle until it is at most ``width`` pixels wide."""
    keep = len(text)
    shown = text
    while font.getlength(shown) > width and keep > 1:
        keep -= 1
        shown = f"{text[: keep - keep // 2]}…{text[len(text) - keep // 2 :]}"
    return shown


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Break ``text`` into at most two lines; a longer one is shortened."""
    words, first = text.split(" "), 0
    while first < len(words) and font.getlength(" ".join(words[: first + 1])) <= width:
        first += 1
    if first == len(words):
        return [text]
    first = max(1, first)
    parts = " ".join(words[:first]), " ".join(words[first:])
    return [fit(part, font, width) for part in parts if part]
