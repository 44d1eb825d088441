"""What an index can be asked, and how questions become blocks, answers and judgements. Knows no file and no engine.

MaxSim is linear in positive scales, so the weights of a picture and of a sentence beside it go into the query's blocks.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from avse.images import ImageSource
from avse.index.contract import Blocks, Encoder, Hit, Layout, Store, check_blocks
from avse.index.memory import MemoryStore
from avse.index.where import fields, parse

SENTENCE_WEIGHT = 0.5
"""w of a sentence and a picture asked together: w·S/Q + (1-w)·S_II (method, section 3)."""


class Query(NamedTuple):
    """One question, as the arguments of `avse.index.Index.search`."""

    text: str | None = None
    image: ImageSource | None = None
    embedding: ArrayLike | None = None
    where: str | None = None
    k: int = 10
    approximate: bool = False


def check_query(query: Query, layout: Layout, place: str) -> None:
    """Refuse what cannot be asked, before anything is computed.

    Raises:
        ValueError: Nothing or too much is asked, ``k`` below 1, a ``where`` that is none, a sentence for texts.
    """
    if isinstance(query.k, bool) or not isinstance(query.k, int) or query.k < 1:
        raise ValueError(f"k={query.k!r}: a whole number of at least 1 is wanted")
    if query.where is not None:
        parse(query.where)
    if query.embedding is not None and (query.text is not None or query.image is not None):
        raise ValueError("embedding= is asked alone, without a sentence or a picture")
    if query.text is None and query.image is None and query.embedding is None:
        raise ValueError("nothing to search for: give a sentence, image= or embedding=")
    if layout.side == "texts" and query.text is not None:
        raise ValueError(f"{place} is an index of texts, which answers pictures: give image= / --image FILE")
    if query.text is not None and not query.text.strip():
        raise ValueError("the sentence to search for is empty")


def query_blocks(queries: Sequence[Query], layout: Layout, encoder: Callable[[], Encoder]) -> list[Blocks]:
    """Return the blocks (R, C) of each checked query; the sentences are encoded together, and so are the pictures.

    Raises:
        ValueError: An embedding of another shape, or of blocks that are not of unit length; no model is to be found.
        ImageError: A picture cannot be read.
    """
    sentences = [query.text for query in queries if query.text is not None]
    images = [query.image for query in queries if query.image is not None]
    texts = iter(encoder().encode_texts(sentences) if sentences else ())
    pictures = iter(encoder().encode_images(images) if images else ())
    made: list[Blocks] = []
    for query in queries:
        if query.embedding is not None:
            asked = np.asarray(query.embedding)[None]
            made.append(check_blocks(asked, layout.query, "an embedding to search for")[0])
            continue
        text = None if query.text is None else next(texts)
        picture = None if query.image is None else next(pictures)
        made.append(_joined(text, picture, layout))
    return made


def answer(store: Store, queries: Sequence[Query], blocks: Sequence[Blocks]) -> list[list[Hit]]:
    """Ask the store; questions without a condition go through the memory store together."""
    conditions = [None if query.where is None else parse(query.where) for query in queries]
    found: list[list[Hit]] = [[] for _ in queries]
    together: list[int] = []
    for at, query in enumerate(queries):
        if isinstance(store, MemoryStore) and conditions[at] is None and not query.approximate:
            together.append(at)
        else:
            found[at] = store.search(blocks[at], query.k, conditions[at], query.approximate)
    if together and isinstance(store, MemoryStore):
        answers = store.search_many([blocks[at] for at in together], [queries[at].k for at in together])
        for at, hits in zip(together, answers):
            found[at] = hits
    return found


def judge(queries: Sequence[Query], answers: list[list[Hit]], layout: Layout, size: int, encoder: Any) -> None:
    """Fill confidence and weak of the hits whose score is an S, where the encoder was calibrated.

    Those are a sentence's in an index of images and a picture's in one of texts.

    Args:
        queries: What was asked.
        answers: The hits of each, changed in place.
        layout: What the index holds.
        size: How many entries it has, which the best of its scores grows with.
        encoder: The model; one without ``calibration`` judges nothing.
    """
    if (calibration := getattr(encoder, "calibration", None)) is None:
        return
    images = layout.side == "images"
    for query, hits in zip(queries, answers):
        fits = query.text is not None and query.image is None if images else query.image is not None
        if fits and hits:
            scores = np.array([hit.score for hit in hits])
            sure, weak = calibration.judge(scores, size, "t2i" if images else "i2t")
            hits[:] = [h._replace(confidence=float(c), weak=bool(w)) for h, c, w in zip(hits, sure, weak)]


def unknown_fields(store: Store, where: str) -> list[str]:
    """Say of each field of a ``where`` expression that no entry has, that it is so; see `avse.index.Index`."""
    wanted = fields(parse(where))
    found, there = store.fields(wanted)
    unknown = [name for name in wanted if name not in found] if len(store) else []
    return [f"no entry has the field {name!r}{_nearest(name, there)}" for name in unknown]


def _nearest(name: str, names: set[str]) -> str:
    if name in ("date", "year"):
        return "; it comes from EXIF, which no picture here has"
    close = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(sorted(names)[:12]) or 'none'}"


def _joined(text: Blocks | None, picture: Blocks | None, layout: Layout) -> Blocks:
    """Return the blocks to ask for a sentence, a picture or both."""
    if picture is None or layout.side == "texts":
        return np.ascontiguousarray(text if picture is None else picture, np.float32)
    alone = picture / len(picture)
    if text is None:
        return np.ascontiguousarray(alone, np.float32)
    both = np.concatenate([text * (SENTENCE_WEIGHT / len(text)), (1 - SENTENCE_WEIGHT) * alone])
    return np.ascontiguousarray(both, np.float32)
