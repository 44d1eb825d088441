"""HTML taken apart: well-formed, nothing fetched, nothing run, every picture described and readable."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

from PIL import Image

VOID = {"meta", "img", "br"}


class Checked(HTMLParser):
    """Refuses what is not closed, nested wrongly or fetched; keeps text, tags and pictures."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.pictures: list[tuple[str, Image.Image]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        assert "@import" not in text and "url(" not in text

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert tag not in ("script", "link", "iframe", "object", "form") and len(found) == len(attrs)
        assert not [name for name in found if name.startswith("on")], found
        self.tags.append((tag, found))
        if tag == "img":
            assert found["alt"] and found["src"].startswith(("data:image/jpeg;base64,", "data:image/png;base64,"))
            picture = Image.open(io.BytesIO(base64.b64decode(found["src"].split(",")[1], validate=True)))
            picture.load()
            self.pictures.append((found["alt"], picture))
        else:
            assert "src" not in found and "href" not in found
        if tag == "svg":
            assert found["role"] == "img" and found["aria-label"]
        if tag == "th":
            assert found["scope"] in ("row", "col")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data

    def having(self, name: str) -> int:
        """Count the tags of a class."""
        return sum(name in (found.get("class") or "").split() for _, found in self.tags)
