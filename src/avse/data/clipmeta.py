"""What an Open Clip Art SVG says of itself, and which of its words are fit to be captions.

Knows neither pictures nor folders: bytes of an SVG in, clean texts out. The rules were chosen by reading the
collection: an exporter left ``HASH(0x...)`` in place of values, series share one title, tags name folders and authors.
"""

from __future__ import annotations

import html
import re
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from xml.parsers import expat

LONGEST = 200
"""Characters of a description that are kept, cut at a word."""

MOST_TAGS = 10
"""Tags that are kept in a caption, the rarest."""

USELESS_TAGS = frozenset({"hash", "unsorted", "openclipart", "clipart", "clip art", "special", "signs and symbols"})
_RUBBISH = re.compile(
    r"HASH\(0x[0-9a-f]*\)?|\b0x[0-9a-f]{5,}\b|\S+@\S+|(https?:|www\.)\S*|[^\S ]|\.svg\b", re.IGNORECASE
)
_SERIES = re.compile(r"^clip ?art by [^-]+ - ", re.IGNORECASE)
_BLACK_AND_WHITE = re.compile(r"\(?\b(B and W|B & W|B/W|BW)\b\)?", re.IGNORECASE)
_ABOUT_MAKING = re.compile(
    r"inkscape|sodipodi|illustrator|converted|traced|contact|copyright|licen[cs]e|public domain|enjoy|clip ?art|\bsvg\b"
    r"|printing|wikipedia|\bmade (by|with|in)\b|\bdrawn (by|with)\b|collection of|part of|data from",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class ClipMeta:
    """The fields of one SVG's metadata as they stand there, spaces collapsed; ``license`` is its address or empty."""

    title: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    creators: tuple[str, ...] = ()
    license: str = ""


class _Done(Exception):
    """The metadata block has been read; the drawing is of no interest."""


def read_metadata(svg: bytes) -> ClipMeta:
    """Return the first ``cc:Work`` of an SVG.

    Raises:
        ValueError: Broken XML, or a document that declares entities (they are never expanded).
    """
    path: list[str] = []
    found: dict[str, list[str]] = {}

    def start(tag: str, attributes: dict[str, str]) -> None:
        path.append(tag.rpartition(" ")[2])
        if "Work" in path:
            license = next((value for name, value in attributes.items() if name.endswith(" resource")), "")
            found.setdefault(_key(path), []).append(license if path[-1] == "license" else "")

    def text(characters: str) -> None:
        if "Work" in path:
            found[_key(path)][-1] += characters

    def end(_: str) -> None:
        if path.pop() == "Work":
            raise _Done

    def entity(name: str, *_: object) -> None:
        raise ValueError(f"declares entities, which are not read: {name}")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = text, entity
    try:
        parser.Parse(svg, True)
    except _Done:
        pass
    except expat.ExpatError as error:
        raise ValueError(f"broken XML: {error}") from error
    fields = {key: tuple(" ".join(value.split()) for value in values) for key, values in found.items()}
    return ClipMeta(
        title=fields.get("title", ("",))[0],
        description=fields.get("description", ("",))[0],
        tags=fields.get("subject/Bag/li", ()),
        creators=fields.get("creator/Agent/title", ()),
        license=fields.get("license", ("",))[0],
    )


def is_public_domain(meta: ClipMeta) -> bool:
    """Tell whether the SVG names the public domain, or no licence: the collection as a whole is public domain."""
    return not meta.license or "publicdomain" in re.sub(r"\W", "", meta.license).lower()


def same(text: str) -> str:
    """Return what two texts must share to count as one: lower case, words only."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def clean(text: str) -> str:
    """Return a text without what the exporter, series and addresses left in it; empty when nothing is left.

    >>> clean("Clipart by Nicu Buculei - contour_chipmunk"), clean("Lemon (B and W)"), clean("HASH(0x861a740)")
    ('contour chipmunk', 'Lemon black and white', '')
    """
    text = html.unescape(html.unescape(text))
    try:
        text = text.encode("latin-1").decode("utf-8")
    except UnicodeError:  # it was no doubly encoded text
        pass
    text = "".join(c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cc" or c.isspace())
    text = _SERIES.sub("", _RUBBISH.sub(" ", text)).replace("_", " ")
    text = _BLACK_AND_WHITE.sub("black and white", text)
    text = text if " " in text.strip() else text.replace("-", " ")
    text = " ".join(text.split()).strip(" -,;:=./")
    return text if sum(character.isalpha() for character in text) >= 2 else ""


def clean_title(meta: ClipMeta) -> str:
    """Return the title without the author's name, where two or more words of the name stand in it."""
    title = clean(meta.title)
    names = [words for creator in meta.creators if len(words := set(same(creator).split())) >= 2]
    for name in names:
        if len(name & set(same(title).split())) >= 2:
            title = clean(" ".join(word for word in title.split() if same(word) not in name))
    return title


def clean_description(text: str, title: str) -> str:
    """Return the sentences of a description that speak of the picture, where they say more than its title."""
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", clean(text)) if not _ABOUT_MAKING.search(s)]
    kept = textwrap.shorten(" ".join(sentences), LONGEST, placeholder="").strip(" -,;:")
    return "" if set(same(kept).split()) <= set(same(title).split()) else kept


def clean_tags(meta: ClipMeta) -> tuple[str, ...]:
    """Return the tags that speak of the picture.

    Without folder names, numbers, authors, glued-together sentences and plurals whose singular is there.
    """
    useless = USELESS_TAGS | {same(creator) for creator in meta.creators}
    tags = dict.fromkeys(tag for raw in meta.tags if (tag := same(clean(raw))) and tag not in useless)
    return tuple(tag for tag in tags if _is_short(tag) and not (tag.endswith("s") and tag[:-1] in tags))


def texts_of(metas: Sequence[ClipMeta], tag_counts: Counter[str]) -> list[str]:
    """Return what is said of one picture: its titles, descriptions, and its tags as one caption, the rarest first.

    Texts that are the same by `same` stand once; the tags are left out where the others hold every word of them.

    Args:
        metas: The metadata of the picture and of its copies.
        tag_counts: How often each tag stands in the collection.
    """
    texts: list[str] = []
    for meta in metas:
        title = clean_title(meta)
        texts += [title, clean_description(meta.description, title)]
    tags = {tag for meta in metas for tag in clean_tags(meta)}
    caption = ", ".join(sorted(tags, key=lambda tag: (tag_counts[tag], tag))[:MOST_TAGS])
    if not set(same(caption).split()) <= {word for text in texts for word in same(text).split()}:
        texts.append(caption)
    distinct: dict[str, str] = {}
    for text in filter(None, texts):
        distinct.setdefault(same(text), text)
    return list(distinct.values())


def title_group(title: str) -> str:
    """Return what the titles of one series share: lower case, without numbers and what stands in brackets.

    >>> title_group("LED Rectangular H (Red)") == title_group("led rectangular h 2")
    True
    """
    return same(re.sub(r"\([^)]*\)|\d+|black and white", " ", clean(title).casefold()))


def _is_short(tag: str) -> bool:
    return max(map(len, tag.split())) <= 20 and len(tag.split()) <= 4


def _key(path: list[str]) -> str:
    return "/".join(path[path.index("Work") + 1 :])
