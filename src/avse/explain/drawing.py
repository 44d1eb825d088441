"""An explanation as a picture and as HTML: the heat over the picture, the words shaded, the table of matches.

Pillow and numpy alone. What lowered the score is never drawn as hot. Knows no model.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from avse import files, markup
from avse.images import ImageError, read_image
from avse.sheet import EMPTY, GREY, INK, MARGIN, PAPER, clean, fit, font_of

if TYPE_CHECKING:
    from avse.explain.explanation import Explanation, Match

WIDTH, GUTTER = 1120, 20
COLUMN = (WIDTH - 2 * MARGIN - GUTTER) // 2
LINES, ROWS = 8, 12
FINE = 8
"""Points a cell where the hottest place of a heat is looked for."""
HOT, COLD = (240, 130, 30), (60, 120, 215)

_RAMP = np.array([(74, 12, 107), (146, 28, 110), (204, 52, 78), (240, 104, 30), (252, 178, 22), (252, 255, 140)], float)
"""Colours of equal steps in lightness, dark violet to light yellow."""

Floats = NDArray[np.float64]
Size = tuple[int, int]


def overlay(explanation: Explanation, size: int = 640) -> Image.Image:
    """Return the picture, greyed, under its heat, `size` pixels at its longer side.

    Raises:
        ValueError: No picture is known.
        ImageError: It cannot be read.
    """
    if explanation.image is None:
        raise ValueError("no picture belongs to this explanation: give it one, dataclasses.replace(..., image=...)")
    heat = explanation.heat
    return _heated(explanation, _picture(explanation, size), heat, _top(explanation, heat))


def draw(explanation: Explanation, out: str | Path, *, force: bool = False) -> Path:
    """Draw why a picture and a sentence score as they do, and write it as PNG (atomically).

    On top the sentence, each word shaded by its part of S; below it the picture, the picture under its heat with the
    scale, and each text block's match, with its own heat where there are several. A picture that is not known or gone
    is left grey.

    Raises:
        FileExistsError, IsADirectoryError: ``out`` is there and not ``force``, or is a folder.
    """
    out = Path(out)
    files.check_target(out, force)
    image, lost = _found(explanation, COLUMN)
    parts = [_title(explanation), _pictures(explanation, image, lost), _table(explanation, image)]
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in parts) + MARGIN), PAPER)
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    stream = io.BytesIO()
    sheet.save(stream, "PNG")
    files.write_bytes(out, stream.getvalue())
    return out


def figure(explanation: Explanation, size: int = 320, words: bool = True) -> markup.Html:
    """Return the overlay, where there is a picture, over the shaded words and S."""
    parts: list[markup.Html] = []
    if explanation.image is not None:
        parts.append(
            markup.thumbnail(lambda: overlay(explanation, size), f"heat of “{explanation.text}” over the picture", size)
        )
    if words:
        told = [(start, end, score, f"{explanation.told(score)} of S") for _, start, end, score, _ in explanation.words]
        parts.append(markup.shaded(explanation.text, told))
    parts.append(markup.element("figcaption", _scored(explanation)))
    return markup.element("figure", *parts)


def to_html(explanation: Explanation) -> str:
    """Return the figure with the table of matches, for a notebook."""
    head = ("text block", "view", "image block", "A_ij", "share of S")
    rows = [_cells(explanation, match) for match in explanation.matches]
    return markup.fragment(figure(explanation), markup.table(head, rows))


def _cells(explanation: Explanation, match: Match) -> tuple[str, str, str, str, str]:
    text, image, view, score, _ = match
    share = explanation.told(score) if explanation.in_shares else "–"
    return str(text), str(view), str(image), f"{score:.3f}", share


def _scored(explanation: Explanation) -> str:
    told = f"S = {explanation.score:.3f} of at most {len(explanation.matches)}, method {explanation.method}"
    return told if explanation.method == "exact" else f"{told}: parts need not add up to S"


def _picture(explanation: Explanation, size: int) -> Image.Image:
    source = explanation.image
    assert source is not None
    image = read_image(source, draft=None if isinstance(source, Image.Image) else (size, size))
    return ImageOps.contain(image, (size, size), Image.Resampling.LANCZOS)


def _found(explanation: Explanation, size: int) -> tuple[Image.Image, str]:
    """Return the picture, or a grey one and why."""
    try:
        if explanation.image is not None:
            return _picture(explanation, size), ""
        why = "no picture known"
    except (ImageError, OSError) as error:
        why = error.reason if isinstance(error, ImageError) else "cannot be read"
    rows, columns = (1, 1) if explanation.boxes is not None else explanation.grid
    blank = Image.new("RGB", (8 * columns, 8 * rows), EMPTY)
    return ImageOps.contain(blank, (size, size)), why


def smooth(heat: NDArray[np.floating], size: Size) -> Floats:
    """Return the heat (h, w) of `size` = (width, height) points: a cubic B-spline of the signed heat, as the page's.

    It shows no cells' edges; beyond the outermost cells' centres they go on.
    """
    down, across = (_spline(cells, points) for cells, points in zip(heat.shape, size[::-1]))
    spread: Floats = down @ heat.astype(np.float64) @ across.T
    return spread


def _spline(cells: int, points: int) -> Floats:
    """Return what each of the cells of a side adds to each of the points on it, (points, cells)."""
    place = (np.arange(points) + 0.5) * cells / points - 0.5
    low = np.floor(place).astype(int)
    t = place - low
    shares = (1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3
    added = np.zeros((points, cells))
    for step, share in enumerate(shares):
        np.add.at(added, (np.arange(points), np.clip(low - 1 + step, 0, cells - 1)), share / 6)
    return added


def _top(explanation: Explanation, *heats: NDArray[np.float32]) -> float:
    """Return the value of the hottest colour, as drawn; where nothing is above 0 the scale still has a length."""
    rows, columns = explanation.grid
    fine = heats if explanation.boxes is not None else [smooth(heat, (FINE * columns, FINE * rows)) for heat in heats]
    return max(1e-6, *(float(heat.max(initial=0.0)) for heat in fine))


def _ramp(share: Floats) -> Floats:
    """Return colours (..., 3) of shares in [0, 1]."""
    place = np.clip(share, 0, 1) * (len(_RAMP) - 1)
    steps = np.arange(len(_RAMP))
    return np.stack([np.interp(place, steps, _RAMP[:, channel]) for channel in range(3)], axis=-1)


def _alpha(share: Floats) -> Floats:
    return 0.74 * np.clip(share, 0, 1) ** 0.7


def _heated(explanation: Explanation, image: Image.Image, heat: NDArray[np.float32], top: float) -> Image.Image:
    """Lay a heat (h, w) over a picture: the picture becomes pale grey, so that hot shows on light and dark ones."""
    share = _spread(explanation, heat, image.size) / top
    grey = np.asarray(image.convert("L"), np.float64)[..., None]
    ground = 0.75 * (70 + grey * (150 / 255)) + 0.25 * np.asarray(image, np.float64)
    outside = ~_inside(explanation, image.size)[..., None]
    ground = np.where(outside, 255 - (255 - ground) * 0.35, ground)
    alpha = _alpha(share)[..., None]
    mixed = Image.fromarray(np.rint(ground * (1 - alpha) + _ramp(share) * alpha).astype(np.uint8))
    pen = ImageDraw.Draw(mixed)
    if explanation.boxes is not None:
        _outline_boxes(pen, explanation, heat, top, image.size)
    else:
        _outline_kept(pen, explanation, heat, image.size)
    return mixed


def _frame(explanation: Explanation, size: Size) -> tuple[int, int, int, int]:
    """Return what the encoder sees, in pixels of a picture of this size."""
    x0, y0, x1, y1 = explanation.frame
    left, up = round(x0 * size[0]), round(y0 * size[1])
    return left, up, max(left + 1, round(x1 * size[0])), max(up + 1, round(y1 * size[1]))


def _spread(explanation: Explanation, heat: NDArray[np.float32], size: Size) -> Floats:
    """Return the heat of each pixel, (height, width): smooth over the cells, cold below 0 and outside the frame."""
    spread = np.zeros((size[1], size[0]))
    if explanation.boxes is not None:
        for box, value in zip(_boxes(explanation, size), heat.ravel().tolist()):
            left, up, right, down = box
            part = spread[up:down, left:right]
            np.maximum(part, value, out=part)
        return spread
    left, up, right, down = _frame(explanation, size)
    whole = smooth(heat, (right - left, down - up))
    inner = whole[max(0, -up) :, max(0, -left) :][: size[1] - max(0, up), : size[0] - max(0, left)]
    spread[max(0, up) : max(0, up) + inner.shape[0], max(0, left) : max(0, left) + inner.shape[1]] = inner
    return np.maximum(spread, 0)


def _inside(explanation: Explanation, size: Size) -> NDArray[np.bool_]:
    left, up, right, down = _frame(explanation, size)
    inside = np.zeros((size[1], size[0]), bool)
    inside[max(0, up) : max(0, down), max(0, left) : max(0, right)] = True
    return inside


def _boxes(explanation: Explanation, size: Size) -> Iterator[tuple[int, int, int, int]]:
    assert explanation.boxes is not None
    for x0, y0, x1, y1 in explanation.boxes.tolist():
        left, up = round(x0 * size[0]), round(y0 * size[1])
        yield max(0, left), max(0, up), max(left + 1, round(x1 * size[0])), max(up + 1, round(y1 * size[1]))


def _outline_boxes(
    pen: ImageDraw.ImageDraw, explanation: Explanation, heat: NDArray[np.float32], top: float, size: Size
) -> None:
    values, boxes = heat.ravel(), list(_boxes(explanation, size))
    for place in np.argsort(values, kind="stable").tolist():
        left, up, right, down = boxes[place]
        share = float(values[place]) / top
        colour = tuple(np.rint(_ramp(np.array(share))).astype(int).tolist()) if share > 0 else (150, 150, 150)
        pen.rectangle((left, up, right - 1, down - 1), outline=colour, width=3 if share > 0.5 else 1)


def _outline_kept(pen: ImageDraw.ImageDraw, explanation: Explanation, heat: NDArray[np.float32], size: Size) -> None:
    """Draw lightly where the cells that a view kept end: those it left out supplied nothing at all."""
    left, up, right, down = _frame(explanation, size)
    kept = heat != 0
    across = np.linspace(left, right, kept.shape[1] + 1).round().astype(int).tolist()
    along = np.linspace(up, down, kept.shape[0] + 1).round().astype(int).tolist()
    for row, column in np.argwhere(kept[:, 1:] != kept[:, :-1]).tolist():
        pen.line((across[column + 1], along[row], across[column + 1], along[row + 1]), "#ffffff")
    for row, column in np.argwhere(kept[1:] != kept[:-1]).tolist():
        pen.line((across[column], along[row + 1], across[column + 1], along[row + 1]), "#ffffff")


class _Piece(NamedTuple):
    """A word, or what stands between two: its text, its score (None: no word) and whether a space goes before it."""

    text: str
    score: float | None
    apart: bool


def _pieces(explanation: Explanation) -> Iterator[_Piece]:
    """Yield the sentence in pieces that may stand on lines of their own."""
    text, last = explanation.text, 0
    for word in sorted(explanation.words, key=lambda word: word.start):
        yield from _between(text, last, word.start)
        yield _Piece(clean(text[word.start : word.end]), word.score, text[: word.start][-1:].isspace())
        last = word.end
    yield from _between(text, last, len(text))


def _between(text: str, start: int, end: int) -> Iterator[_Piece]:
    before = text[:start][-1:].isspace()
    for part in text[start:end].split():
        yield _Piece(clean(part), None, before or text[start:end][:1].isspace())
        before = True


def _title(explanation: Explanation) -> Image.Image:
    """Draw the sentence, shaded, the part of S below each word, and a line of what it all is."""
    font, small, height = font_of(28), font_of(13), 64
    space, edge = font.getlength(" "), WIDTH - MARGIN
    most = max((abs(word.score) for word in explanation.words), default=0.0) or 1.0
    placed: list[tuple[float, int, _Piece, float]] = []
    x, line = float(MARGIN), 0
    for piece in _pieces(explanation):
        text = fit(piece.text, font, edge - MARGIN)
        label = "" if piece.score is None else explanation.told(piece.score)
        wide = max(font.getlength(text), small.getlength(label))
        x += max(space, 10.0) if piece.apart and x > MARGIN else 0
        if x + wide > edge:
            x, line = float(MARGIN), line + 1
        placed.append((x, line, piece._replace(text=text), wide))
        x += wide
    lines = min(line + 1, LINES)
    strip = Image.new("RGB", (WIDTH, MARGIN + lines * height + 52), PAPER)
    pen = ImageDraw.Draw(strip)
    for x, line, piece, wide in placed:
        top = MARGIN + line * height
        if piece.score is not None and line < lines:
            pen.rounded_rectangle((x - 2, top - 2, x + wide + 1, top + 37), 5, _shade(piece.score / most))
            pen.text((x + wide / 2, top + 40), explanation.told(piece.score), GREY, small, anchor="ma")
    for x, line, piece, wide in placed:
        if line < lines:
            pen.text((x + wide / 2, MARGIN + line * height + 28), piece.text, INK, font, anchor="ms")
    if line >= lines:
        pen.text((edge + 2, MARGIN + (lines - 1) * height + 28), "…", INK, font_of(20), anchor="ls")
    below = MARGIN + lines * height + 4
    pen.text((MARGIN, below), _scored(explanation), INK, font_of(17))
    beside = f"Beside the words: {_rest(explanation.beside, explanation)}."
    told = f"Below each word its {'share' if explanation.in_shares else 'part'} of S; blue words lower it. {beside}"
    pen.text((MARGIN, below + 25), told, GREY, font_of(14))
    return strip


def _rest(part: float, explanation: Explanation) -> str:
    return f"{part:+.3f} ({explanation.told(part)})" if explanation.in_shares else f"{part:+.3f}"


def _shade(part: float) -> tuple[int, int, int]:
    """Return paper tinted by a part in [-1, 1]: warm above 0, cool below."""
    weight, tint = 0.7 * min(1.0, abs(part)), HOT if part > 0 else COLD
    red, green, blue = (round(255 + weight * (value - 255)) for value in tint)
    return red, green, blue


def _pictures(explanation: Explanation, image: Image.Image, lost: str) -> Image.Image:
    """Draw the picture, and beside it the same under its heat with the scale below."""
    heat = explanation.heat
    top = _top(explanation, heat)
    strip = Image.new("RGB", (WIDTH, image.height + 106), PAPER)
    pen = ImageDraw.Draw(strip)
    left, right = MARGIN + (COLUMN - image.width) // 2, MARGIN + COLUMN + GUTTER + (COLUMN - image.width) // 2
    strip.paste(image, (left, MARGIN))
    pen.rectangle((left - 1, MARGIN - 1, left + image.width, MARGIN + image.height), outline="#d5d9df")
    if lost:
        pen.text((MARGIN + COLUMN // 2, MARGIN + image.height // 2), lost, GREY, font_of(16), anchor="mm")
    strip.paste(_heated(explanation, image, heat, top), (right, MARGIN))
    wide, below = 260, MARGIN + image.height + 14
    x = MARGIN + COLUMN + GUTTER
    share = np.linspace(0, 1, wide)[None].repeat(12, axis=0)
    alpha = _alpha(share)[..., None]
    strip.paste(Image.fromarray(np.rint(160 * (1 - alpha) + _ramp(share) * alpha).astype(np.uint8)), (x, below))
    for place, value, anchor in ((0, "0", "la"), (wide // 2, f"{top / 2:.3f}", "ma"), (wide, f"{top:.3f}", "ra")):
        pen.text((x + place, below + 15), value, GREY, font_of(13), anchor=anchor)
    what = "region" if explanation.boxes is not None else "cell, smoothed"
    pen.text((x + wide + 14, below - 3), f"part of S of one {what}", INK, font_of(14))
    pen.text((x + wide + 14, below + 16), f"beyond them: {_rest(explanation.beyond, explanation)}", GREY, font_of(14))
    if explanation.boxes is None and heat.any() and not heat.all():
        pen.text((x, below + 38), "white line: where the cells end that the winning views kept", GREY, font_of(13))
    return strip


def _table(explanation: Explanation, image: Image.Image) -> Image.Image:
    """Draw a row for each text block; where there are several, each with its own heat on the common scale."""
    several = len(explanation.matches) > 1
    small = ImageOps.contain(image, (150, 100 if len(explanation.matches) <= 4 else 52)) if several else None
    height = small.height + 14 if small else 34
    shown = explanation.matches[:ROWS]
    left = len(explanation.matches) - len(shown)
    strip = Image.new("RGB", (WIDTH, MARGIN + 34 + height * len(shown) + (34 if left else 0)), PAPER)
    pen = ImageDraw.Draw(strip)
    columns = [MARGIN, MARGIN + 150, MARGIN + 250, MARGIN + 420, MARGIN + 540]
    for x, name in zip(columns, ("text block j", "view v", "image block i", "A_ij", "share of S")):
        pen.text((x, MARGIN), name, GREY, font_of(15))
    pen.line((MARGIN, MARGIN + 26, WIDTH - MARGIN, MARGIN + 26), "#d5d9df")
    top = _top(explanation, *explanation.heats)
    most = max(abs(match.score) for match in explanation.matches) or 1.0
    for row, match in enumerate(shown):
        up = MARGIN + 34 + row * height
        middle = up + height // 2 - 4
        for x, cell in zip(columns, _cells(explanation, match)):
            pen.text((x, middle), cell, INK, font_of(17), anchor="lm")
        wide = round(200 * abs(match.score) / most)
        tint = _shade(0.7 if match.score > 0 else -0.7)
        if wide:
            pen.rectangle((columns[-1] + 66, middle - 7, columns[-1] + 66 + wide, middle + 7), tint)
        if small:
            part = _heated(explanation, small, explanation.heats[match.text_block], top)
            strip.paste(part, (WIDTH - MARGIN - part.width, up))
    if left:
        pen.text((MARGIN, strip.height - 28), f"… and {left} more text blocks", GREY, font_of(15))
    return strip
