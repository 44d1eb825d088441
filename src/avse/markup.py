"""HTML that stands alone: pages, tables, pictures inside the page, small charts. All text is escaped but `Html`.

Nothing is fetched and no script is run. Knows neither files nor models, and loads no Pillow: pictures come in.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

STYLE = """
.avse { --line: #8884; --soft: #8881; --first: #2563c9; --second: #d9730d; --hot: 217, 115, 13; --cold: 37, 99, 201;
  font: 15px/1.5 system-ui, sans-serif; }
.avse h1 { font-size: 1.7em; margin: 1rem 0 .3rem; line-height: 1.2; }
.avse h2 { font-size: 1.25em; margin: 2.2rem 0 .5rem; } .avse h3 { font-size: 1em; margin: 1.4rem 0 .4rem; }
.avse table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
.avse caption { text-align: left; font-size: .9em; color: color-mix(in srgb, currentColor 72%, transparent); }
.avse th, .avse td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  background: none; }
.avse thead th, .avse td { white-space: nowrap; } .avse th { font-weight: 600; } .avse tbody th { font-weight: 400; }
.avse th:first-child, .avse td:first-child { text-align: left; }
.avse td span { display: block; white-space: nowrap; }
.avse img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
.avse code, .avse pre { background: var(--soft); border-radius: 4px; padding: .1rem .3rem; }
.avse pre { padding: .8rem; overflow-x: auto; }
.avse svg { width: 100%; min-width: 540px; max-width: 760px; height: auto; display: block; }
.avse svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.avse .note, .avse td span { font-size: .87em; color: color-mix(in srgb, currentColor 72%, transparent); }
.avse .wide { overflow-x: auto; } .avse .row { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
.avse figure { margin: 0; } .avse figcaption { font-size: .87em; overflow-wrap: anywhere; }
.avse .tile { width: 120px; } .avse .tile img, .avse .gone { width: 120px; height: 120px; object-fit: contain; }
.avse .gone { overflow: hidden; } .avse .tile figcaption { max-height: 6em; overflow: hidden; }
.avse .gone { box-sizing: border-box;
  padding: 8px; border: 1px dashed var(--line); border-radius: 6px; font-size: .87em; overflow-wrap: anywhere; }
.avse .right img { outline: 3px solid #2e8b57; } .avse .weak img { opacity: .4; filter: grayscale(1); }
.avse .words { line-height: 1.9; overflow-wrap: anywhere; }
.avse .words span { border-radius: 4px; padding: .15em .2em; }
.avse .cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 522px), 1fr)); gap: 4px 24px; }
.avse .card { border-top: 1px solid var(--line); padding: 6px 0 14px; } .avse .card p { margin: .4em 0; }
.avse .card > .row > div { flex: 1 1 0; min-width: 0; }
.avse .card ol, .avse .card ul { margin: 0; padding-left: 1.3em; }
"""
_PAGE = """
:root { color-scheme: light dark; }
body { margin: 0; } .avse { max-width: 1100px; margin: 0 auto; padding: 1rem 1rem 3rem; }
"""


class Html(str):
    """Text that is markup already and is not escaped again."""

    __slots__ = ()


def escape(text: object) -> Html:
    """Return text that cannot be taken for markup; `Html` as it is."""
    return text if isinstance(text, Html) else Html(html.escape(str(text)))


def join(parts: Iterable[object]) -> Html:
    """Put parts together, each escaped."""
    return Html("".join(map(escape, parts)))


def element(name: str, *content: object, **attributes: object) -> Html:
    """Return an element; the underscores of ``class_`` and ``aria_label`` are for names that Python does not allow.

    >>> element("p", "a < b", Html("<br>"), class_="note")
    '<p class="note">a &lt; b<br></p>'
    """
    told = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{told}>{join(content)}</{name}>")


def page(title: str, *parts: object) -> str:
    """Return a whole page; the title is not repeated as a heading."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{_PAGE}</style></head>\n"
        f'<body><main class="avse">\n{Html(chr(10)).join(map(escape, parts))}\n</main></body></html>\n'
    )


def fragment(*parts: object) -> str:
    """Return a piece for a notebook, with its style."""
    return f'<div class="avse"><style>{STYLE}</style>{join(parts)}</div>'


def table(head: Sequence[object], rows: Iterable[Sequence[object]], caption: object = "") -> Html:
    """Return a table that scrolls where it is too wide; the first cell of a row is its heading."""
    top = join(element("th", cell, scope="col") for cell in head)
    body = join(
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    )
    told = element("caption", caption) if caption else ""
    return element(
        "div",
        element("table", told, element("thead", element("tr", top)), element("tbody", body)),
        class_="wide",
        tabindex=0,
    )


def picture(image: Image.Image | bytes, alt: str) -> Html:
    """Return a picture that lies in the page itself; bytes are those of a PNG, an image becomes a JPEG."""
    kind, stream = "png", io.BytesIO()
    if isinstance(image, bytes):
        stream.write(image)
    else:
        kind = "jpeg"
        image.save(stream, kind, quality=80, optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return Html(f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{data}">')


def thumbnail(read: Callable[[], Image.Image], name: str, side: int = 150) -> Html:
    """Return a picture `side` pixels at its longer side, or an empty tile with its name where `read` fails."""
    try:
        small = read().copy()
        small.thumbnail((side, side))
    except (ValueError, OSError) as error:
        reason = getattr(error, "reason", None) or "cannot be read"
        return element("div", f"{reason}: {name}", class_="gone")
    return picture(small, name)


def shaded(text: str, spans: Iterable[tuple[int, int, float, str]]) -> Html:
    """Return a sentence whose parts (start, end, score, what is told) are shaded.

    Warm is what lifted the score, cool what lowered it, whatever the score itself is.
    """
    parts: list[object] = []
    spans = sorted(spans)
    top = max((abs(score) for _, _, score, _ in spans), default=0.0) or 1.0
    last = 0
    for start, end, score, told in spans:
        colour = f"background: rgba(var(--{'hot' if score >= 0 else 'cold'}), {0.65 * abs(score) / top:.2f})"
        parts += [text[last:start], element("span", text[start:end], style=colour, title=told)]
        last = end
    return element("p", *parts, text[last:], class_="words")


_WIDTH, _HEIGHT, _LEFT, _FOOT, _TOP = 720, 260, 44, 44, 26


def bars(labels: Sequence[str], series: Mapping[str, Sequence[float]], title: str, unit: str) -> Html:
    """Draw bars side by side, up to two a label, with their values, as SVG: percent on a scale from 0."""
    top = max((value for values in series.values() for value in values), default=0.0) or 1.0
    step = (_WIDTH - _LEFT) / max(1, len(labels))
    thick = 0.76 * step / max(1, len(series))
    parts: list[object] = [_scale(top, unit)]
    for number, (name, values) in enumerate(series.items()):
        colour = ("var(--first)", "var(--second)")[number]
        for place, value in enumerate(values):
            x, high = _LEFT + (place + 0.12) * step + number * thick, (_HEIGHT - _FOOT - _TOP) * value / top
            y = _HEIGHT - _FOOT - high
            bar = Html(f'<rect x="{x:.1f}" y="{y:.1f}" width="{thick - 2:.1f}" height="{high:.1f}" fill="{colour}">')
            told = element("title", f"{name}, {labels[place]}: {value:.1f} {unit}")
            parts += [bar, told, Html("</rect>"), _text(x + thick / 2 - 1, y - 4, f"{value:.0f}", "middle")]
        parts.append(_key(number, name, colour))
    parts += [_text(_LEFT + (i + 0.5) * step, _HEIGHT - _FOOT + 18, label, "middle") for i, label in enumerate(labels)]
    return _drawing(parts, title)


def curve(points: Sequence[tuple[float, float]], title: str, across: str, up: str) -> Html:
    """Draw a line through points of shares in [0, 1], with the diagonal, as SVG."""
    wide, high = _WIDTH - _LEFT - 20, _HEIGHT - _FOOT - _TOP

    def at(x: float, y: float) -> str:
        return f"{_LEFT + wide * x:.1f},{_HEIGHT - _FOOT - high * y:.1f}"

    line = " ".join(at(x, y) for x, y in points)
    parts: list[object] = [
        _scale(100.0, "%"),
        _line(f"{at(0, 0)} {at(1, 1)}", stroke="currentColor", stroke_opacity=0.45, stroke_dasharray="5 4"),
        _line(line, stroke="var(--first)", stroke_width=2.5),
        *(_dot(at(x, y), f"{across} {100 * x:.0f} %: {up} {100 * y:.0f} %") for x, y in points),
        *(_text(_LEFT + wide * x / 4, _HEIGHT - _FOOT + 18, f"{25 * x} %", "middle") for x in range(5)),
        _text(_LEFT + wide / 2, _HEIGHT - 6, across, "middle"),
        _text(_LEFT, 14, up, "start"),
    ]
    return _drawing(parts, title)


def _line(points: str, **attributes: object) -> Html:
    return element("polyline", points=points, fill="none", **attributes)


def _dot(place: str, told: str) -> Html:
    x, y = place.split(",")
    return Html(f'<circle cx="{x}" cy="{y}" r="4" fill="var(--first)">{element("title", told)}</circle>')


def _scale(top: float, unit: str) -> Html:
    step = 10.0 ** math.floor(math.log10(top))
    step = next(step * part for part in (0.2, 0.5, 1, 2) if top / (step * part) <= 5)
    parts = []
    for line in range(int(top / step + 1e-9) + 1):
        y = _HEIGHT - _FOOT - (_HEIGHT - _FOOT - _TOP) * line * step / top
        parts.append(Html(f'<path d="M{_LEFT} {y:.1f}H{_WIDTH}" stroke="var(--line)"/>'))
        parts.append(_text(_LEFT - 6, y + 4, f"{line * step:g} {unit}", "end"))
    return join(parts)


def _key(number: int, name: str, colour: str) -> Html:
    x = _WIDTH - 330 + 165 * number
    return join([Html(f'<rect x="{x}" y="3" width="12" height="12" fill="{colour}"/>'), _text(x + 18, 14, name)])


def _text(x: float, y: float, text: str, anchor: str = "start") -> Html:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _drawing(parts: Iterable[object], title: str) -> Html:
    drawn = element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=title)
    return element("div", drawn, class_="wide", tabindex=0)
