"""Contact sheets: size, thumbnails where they belong, gaps for what is gone, long and odd words."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from avse.sheet import COLUMNS, GAP, MARGIN, TILE, Row, Tile, _wrap, contact_sheet, fit


def _pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_thumbnails_lie_in_order_and_the_asked_picture_is_framed_first(tmp_path):
    colours = [(250, 20, 20), (20, 250, 20), (20, 20, 250)]
    tiles = [Tile(Image.new("RGB", (300, 300), colour), f"{colour}.png", 0.5) for colour in colours]
    out = contact_sheet([Row("three", tiles, Image.new("RGB", (50, 50), (9, 9, 9)))], tmp_path / "s.png")
    pixels = _pixels(out)
    assert pixels.shape[1] == 2 * MARGIN + COLUMNS * TILE + (COLUMNS - 1) * GAP
    middle = MARGIN + 34 + 14 + TILE // 2
    found = [tuple(pixels[middle, MARGIN + place * (TILE + GAP) + TILE // 2]) for place in range(4)]
    assert found == [(9, 9, 9), *colours]
    assert tuple(pixels[middle, MARGIN - 2]) == (0x25, 0x63, 0xC9)


def test_wide_pictures_keep_their_shape(tmp_path):
    out = contact_sheet([Row("wide", [Tile(Image.new("RGB", (400, 100), (200, 0, 0)), "w")])], tmp_path / "s.png")
    red = (_pixels(out) == (200, 0, 0)).all(axis=2)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert len(columns) == TILE and len(rows) == TILE // 4


def test_lines_and_several_queries_make_it_taller(tmp_path):
    tile = Tile(None, "nowhere")
    sheets = [[Row("a", [tile] * count)] for count in (1, COLUMNS, COLUMNS + 1)] + [[Row("a", [tile])] * 2]
    heights = [_pixels(contact_sheet(rows, tmp_path / f"{number}.png")).shape[0] for number, rows in enumerate(sheets)]
    assert heights[0] == heights[1] < heights[2] < heights[3]


def test_odd_input_is_drawn_and_never_fatal(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    tiles = [Tile(tmp_path / "gone.png", "gone"), Tile(tmp_path / "broken.jpg", "日本\n" * 50, -1.25), Tile(None, "")]
    rows = [Row("no answers", []), Row("w" * 500, tiles), Row("many words " * 60, tiles), Row("\0\n🐕", tiles)]
    out = contact_sheet(rows, tmp_path / "s.png")
    assert _pixels(out).shape[0] > 3 * TILE
    with pytest.raises(FileExistsError, match="force"):
        contact_sheet(rows, out)
    contact_sheet(rows[:1], out, force=True)
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], tmp_path / "t.png")


def test_names_are_shortened_in_the_middle_and_titles_wrapped():
    font = ImageFont.load_default(14)
    name = "holidays/2019/a very long name of a picture at the sea.jpg"
    short = fit(name, font, 200)
    assert font.getlength(short) <= 200 and short.startswith("holi") and short.endswith(".jpg") and "…" in short
    assert fit("short.jpg", font, 200) == "short.jpg"
    assert _wrap("one two three", font, 1000) == ["one two three"]
    lines = _wrap("word " * 30, font, 300)
    assert len(lines) == 2 and all(font.getlength(line) <= 300 for line in lines)


def test_letters_beyond_ascii_are_drawn_or_spelt_without_marks(monkeypatch):
    """Pillow's own font has no such letters: a sheet shows them by another font, or plain letters, never boxes."""
    from PIL import ImageFont

    from avse import sheet

    sheet.font_of.cache_clear()
    shown = sheet.clean("Öse, Straße")
    if shown == "Öse, Straße":
        font = sheet.font_of(20)
        assert bytes(font.getmask("Ö")) != bytes(font.getmask("\uffff"))

    def none(*args, **kwargs):
        raise OSError("no such font")

    sheet.font_of.cache_clear()
    monkeypatch.setattr(ImageFont, "truetype", none)
    monkeypatch.setattr(ImageFont, "load_default", lambda size: ImageFont.ImageFont())
    assert sheet.clean("Öse, Straße") == "Ose, Strasse"
    sheet.font_of.cache_clear()
