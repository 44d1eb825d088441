"""What the index and its stores agree on: the encoder's protocol, the store's protocol, hits, reports and checks.

Knows no model, no engine and no file format. Letters as in the method: P image blocks, Q text blocks, C block width.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avse.images import PixelSpec
from avse.index.where import Node

Side = Literal["images", "texts"]
Blocks = NDArray[np.float32]
Payload = dict[str, Any]

UNIT_TOLERANCE = 1e-3
_LARGEST_INTEGER = 2**63 - 1


class StoreError(OSError):
    """The index on the disk cannot be used: held by another process, damaged, or refused by the system."""


class NotOwnedError(StoreError):
    """The right to change the index cannot be had: another process has it, or the folder is read-only."""


class Encoder(Protocol):
    """What an index needs of a model; ``AVSE`` has it."""

    @property
    def fingerprint(self) -> str:
        """A digest of configuration and weights: equal fingerprints give equal embeddings."""

    @property
    def folder(self) -> Path | None:
        """Where the model is saved, None if it is not."""

    @property
    def num_image_blocks(self) -> int:
        """Number of image blocks P."""

    @property
    def num_text_blocks(self) -> int:
        """Number of text blocks Q."""

    @property
    def block_width(self) -> int:
        """Block width C."""

    def encode_images(self, images: list[Any], /) -> Blocks:
        """Return unit blocks (n, P, C) of n paths or pictures; raise `avse.images.ImageError` for an unreadable one."""

    def encode_texts(self, texts: list[str], /) -> Blocks:
        """Return unit blocks (m, Q, C) of m sentences."""


class PixelEncoder(Encoder, Protocol):
    """An encoder that takes pixels, too, so that other processes can read the files."""

    @property
    def pixels(self) -> PixelSpec | None:
        """How it wants its pixels, height H and width W among it; None where it reads no pictures."""

    def encode_pixels(self, pixels: NDArray[np.float32], /) -> Blocks:
        """Return unit blocks (n, P, C) of pixels (n, 3, H, W)."""


class Hit(NamedTuple):
    """One answer: the id, its score, its payload; confidence and weak are filled by calibrated indexes only."""

    id: str
    score: float
    payload: Payload
    confidence: float | None = None
    weak: bool | None = None

    def _repr_html_(self) -> str:
        from avse.index import shown  # it names this class

        return shown.hit_html(self)


class Skipped(NamedTuple):
    """One input that was not indexed, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class AddReport:
    """What an ``add`` did, in pictures (files) or sentences.

    Attributes:
        added: New ones, embedded.
        known: Left alone, because they are in the index as they are.
        changed: Those whose content is another one than before; of sentences those whose line is another.
        moved: Pictures whose content was in the index under a path that is gone.
        duplicates: New paths of a content that is in the index under another path, too.
        removed: Gone, and taken out of the index.
        skipped: Inputs that are not in the index, and why.
    """

    added: int
    known: int = 0
    skipped: tuple[Skipped, ...] = ()
    changed: int = 0
    moved: int = 0
    duplicates: int = 0
    removed: int = 0


@dataclass(frozen=True)
class Layout:
    """Which side an index holds and its block counts: P, Q and C."""

    side: Side
    num_image_blocks: int
    num_text_blocks: int
    block_width: int

    @property
    def document(self) -> tuple[int, int]:
        """Shape of one stored embedding: (P, C) for images, (Q, C) for texts."""
        return (self.num_image_blocks if self.side == "images" else self.num_text_blocks), self.block_width

    @property
    def query(self) -> tuple[int, int]:
        """Shape of an embedding that may be asked for: the other side's, (Q, C) for images, (P, C) for texts."""
        return (self.num_text_blocks if self.side == "images" else self.num_image_blocks), self.block_width


class Store(Protocol):
    """Where embeddings live. Ids are unique, blocks checked and payloads plain JSON before they get here."""

    def __len__(self) -> int:
        """Return the number of entries."""

    def add(self, ids: Sequence[str], blocks: Blocks, payloads: Sequence[Payload]) -> None:
        """Write n entries, blocks (n, P or Q, C); an id that is there is replaced. Searchable at once."""

    def delete(self, ids: Sequence[str]) -> int:
        """Remove entries and return how many were there."""

    def flush(self) -> None:
        """Return when everything added or deleted is on the disk."""

    def get(self, ids: Sequence[str]) -> tuple[list[str], Blocks, list[Payload]]:
        """Return those of ``ids`` that are there, in the order asked, with blocks (n, P or Q, C) and payloads."""

    def entries(self) -> Iterator[list[tuple[str, Payload]]]:
        """Yield all ids with their payloads page by page, in memory that does not grow with the index."""

    def verify(self) -> Iterator[str]:
        """Read everything and yield a sentence for each damaged entry or file; nothing where all is whole."""

    def compact(self) -> None:
        """Give back the space of deleted and replaced entries."""

    def known(self, ids: Sequence[str]) -> set[str]:
        """Return those of ``ids`` that are in the index."""

    def fields(self, wanted: Sequence[str]) -> tuple[set[str], set[str]]:
        """Return those of ``wanted`` that some entry's payload has, and the fields of the first entries."""

    def search(self, query: Blocks, k: int, where: Node | None, approximate: bool) -> list[Hit]:
        """Return the k best entries, best first, ties by id; query (R, C), its blocks may be scaled.

        For images the score is Σ_r max_i <v_i, q_r>, for texts Σ_j max_r <q_r, t_j>.
        """

    def close(self) -> None:
        """Flush and let go of files and locks."""


def check_blocks(blocks: ArrayLike, shape: tuple[int, int], what: str) -> Blocks:
    """Return ``blocks`` as float32 (n, *shape) after checking that every block is finite and of unit length.

    Raises:
        ValueError: Another shape or kind, NaN or infinity, or a block whose length is not 1 (within 1e-3).
    """
    array = np.asarray(blocks)
    if array.ndim != 3 or array.shape[1:] != shape:
        raise ValueError(
            f"{what} of shape {array.shape}, the index holds (n, {shape[0]}, {shape[1]}): "
            "embed with the model the index was made with"
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{what} of type {array.dtype}, floats are wanted")
    array = np.ascontiguousarray(array, np.float32)
    lengths = np.linalg.norm(array, axis=-1)
    wrong = np.argwhere(~(np.abs(lengths - 1) <= UNIT_TOLERANCE))
    if len(wrong):
        row, block = wrong[0]
        raise ValueError(
            f"{what}: block {block} of row {row} has length {lengths[row, block]:.6g}, unit blocks are wanted "
            f"(within {UNIT_TOLERANCE:g}; {len(wrong)} such blocks)"
        )
    return array


def check_ids(ids: Sequence[str]) -> list[str]:
    """Return the ids as a list.

    Raises:
        ValueError: An id is no string, empty, not valid unicode, or there twice.
    """
    seen: set[str] = set()
    for name in ids:
        if not isinstance(name, str) or not name:
            raise ValueError(f"id {name!r}: ids are strings that are not empty")
        if not is_unicode(name):
            raise ValueError(f"id {name!r} is not valid unicode")
        if name in seen:
            raise ValueError(f"id {name!r} is there twice in one call")
        seen.add(name)
    return list(ids)


def check_payload(name: str, payload: Payload) -> Payload:
    """Return the payload as JSON gives it back (tuples become lists).

    Raises:
        ValueError: It is no dict, or holds what JSON or the engine cannot keep (NaN, objects, integers beyond 64 bits).
    """
    if not isinstance(payload, dict):
        raise ValueError(f"payload of {name!r} is a {type(payload).__name__}, a dict is wanted")
    try:
        text = json.dumps(payload, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
        plain: Payload = json.loads(text, parse_int=_integer)
    except (TypeError, ValueError) as error:
        raise ValueError(f"payload of {name!r} cannot be kept: {error}") from error
    return plain


def is_unicode(text: str) -> bool:
    """Tell whether ``text`` can be written as UTF-8 (file names of another encoding cannot)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _integer(digits: str) -> int:
    if abs(value := int(digits)) > _LARGEST_INTEGER:
        raise ValueError(f"integer {digits} does not fit into 64 bits")
    return value
