"""Hits as a notebook shows them: a row of thumbnails, made when they are asked for. Knows no index and no store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from avse import markup
from avse.images import read_image
from avse.index.contract import Hit

SHOWN = 24
SIDE = 150


class Hits(list[Hit]):
    """A list of hits that shows itself in a notebook.

    Args:
        hits: The answers, best first.
        pictures: Tells where a hit's picture lies; None: there are none, as in an index of texts.
    """

    def __init__(self, hits: Iterable[Hit] = (), pictures: Callable[[Hit], Path | None] | None = None) -> None:
        super().__init__(hits)
        self._pictures = pictures

    def __reduce__(self) -> tuple[type[Hits], tuple[list[Hit]]]:
        """Travel to another process as the bare answers: pictures belong to an open index."""
        return Hits, (list(self),)

    def _repr_html_(self) -> str:
        if not self:
            return markup.fragment(markup.element("p", "no answers", class_="note"))
        notes = []
        if all(hit.weak for hit in self):
            notes.append("no good match: all of these are weak")
        if len(self) > SHOWN:
            notes.append(f"the first {SHOWN} of {len(self)}")
        tiles = [self._tile(rank, hit) for rank, hit in enumerate(self[:SHOWN], start=1)]
        told = [markup.element("p", "; ".join(notes), class_="note")] if notes else []
        return markup.fragment(*told, markup.element("div", *tiles, class_="row"))

    def _tile(self, rank: int, hit: Hit) -> markup.Html:
        said = f"{rank}.  {judged(hit)}"
        line = markup.element("figcaption", said, markup.Html("<br>"), hit.id, title=hit.id)
        kind = "tile weak" if hit.weak else "tile"
        if self._pictures is None:
            return markup.element("figure", line, class_=kind)
        path = self._pictures(hit)
        if path is None:
            shown = markup.element("div", f"no picture known: {hit.id}", class_="gone")
        else:
            shown = markup.thumbnail(partial(read_image, path, draft=(SIDE, SIDE)), hit.id, SIDE)
        return markup.element("figure", shown, line, class_=kind)


def judged(hit: Hit) -> str:
    """Say a hit's score, and where its index is calibrated how sure it is."""
    sure = "" if hit.confidence is None else f", confidence {100 * hit.confidence:.0f} %"
    return f"{hit.score:.3f}{sure}{', weak' if hit.weak else ''}"


def hit_html(hit: Hit) -> str:
    """Return one hit as a table: score, confidence and payload."""
    rows = [("score", judged(hit))]
    rows += [
        (name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for name, value in hit.payload.items()
    ]
    return markup.fragment(markup.table(("id", hit.id), rows))
