"""What the two Qdrant stores share: how an entry becomes a point and back, filters, and the contract over six verbs.

A point's id is a UUID (version 5) of the entry's id. Its payload holds the true id, the entry's payload twice (as exact
JSON text, since the engine's own floats may be off in the last digit, and as "p" for filters), truth values a third
time as words ("flags"; the engine takes ``True`` for 1), and the CRC32 of the text and of the float32 blocks. What is
answered is read back, checked and scored again in float64. MaxSim sums over the query's blocks, which is S for images;
texts would need the sum over the document's and are refused (method, section 3). Knows no engine by name, no model.
"""

from __future__ import annotations

import json
import math
import uuid
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from avse.index.contract import Blocks, Hit, Layout, Payload, StoreError
from avse.index.exact import exact_scores, rounding
from avse.index.where import Compare, Node, has

VECTOR = "blocks"
_PAGE = 256  # points read with their blocks
_BARE_PAGE = 1000  # points read without
_SAMPLE = 200  # points that are read to find out which fields there are
_BOUNDS = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


class Kit(NamedTuple):
    """An engine's names for the parts of a filter."""

    models: Any
    """Where Filter, FieldCondition and MatchValue are."""
    range: Callable[..., Any]
    """Of lt, lte, gt, gte."""
    dates: Callable[..., Any]
    """The same of ISO 8601 dates."""
    empty: Callable[[str], Any]
    """The condition that a payload key is missing, null or an empty list."""


class Entry(NamedTuple):
    """A point read back: id, blocks (P, C) and payload."""

    id: str
    blocks: Blocks
    payload: Payload


class DamagedError(StoreError):
    """A point is not what was written."""


class PointStore(ABC):
    """The `Store` contract for (n, P, C) images over an engine's own verbs."""

    kit: Kit
    place: str
    """What messages call the store: its folder or URL."""

    def __init__(self, layout: Layout) -> None:
        """Name the layout of the points."""
        self._layout = layout

    @abstractmethod
    def _upsert(self, points: Iterator[tuple[str, Blocks, Payload]], count: int) -> None:
        """Write ``count`` points of (UUID, blocks, payload)."""

    @abstractmethod
    def _remove(self, keys: list[str]) -> None:
        """Delete points by their UUIDs."""

    @abstractmethod
    def _retrieve(self, keys: list[str], payload: bool | list[str], vectors: bool) -> list[Any]:
        """Read points by their UUIDs, in any order."""

    @abstractmethod
    def _scroll(self, offset: Any, limit: int, payload: list[str] | bool, vectors: bool) -> tuple[list[Any], Any]:
        """Read points from ``offset`` (None: the first) and return the next offset with them (None: the end)."""

    @abstractmethod
    def _count(self, condition: Any) -> int:
        """Count the points that satisfy a filter, all of them for None."""

    @abstractmethod
    def _nearest(self, query: Blocks, limit: int, condition: Any, exact: bool, above: float | None) -> list[Any]:
        """Return the best points with their scores, best first, those above a score only; without payload."""

    def __len__(self) -> int:
        """Return the number of points."""
        return self._count(None)

    def add(self, ids: Sequence[str], blocks: Blocks, payloads: Sequence[Payload]) -> None:
        """Upsert the points; the engine has them in its log before this returns."""
        entries = zip(ids, blocks, payloads)
        self._upsert(((key_of(name), rows, _kept(name, rows, payload)) for name, rows, payload in entries), len(ids))

    def delete(self, ids: Sequence[str]) -> int:
        """Delete the points that are there and return their number."""
        gone = self.known(ids)
        if gone:
            self._remove([key_of(name) for name in sorted(gone)])
        return len(gone)

    def known(self, ids: Sequence[str]) -> set[str]:
        """Look the ids up by their UUIDs."""
        found: set[str] = set()
        for at in range(0, len(ids), _BARE_PAGE):
            points = self._retrieve([key_of(name) for name in ids[at : at + _BARE_PAGE]], ["id"], False)
            found.update(str((point.payload or {}).get("id")) for point in points)
        return found & set(ids)

    def get(self, ids: Sequence[str]) -> tuple[list[str], Blocks, list[Payload]]:
        """Read entries back.

        Raises:
            StoreError: One of them is damaged.
        """
        found = {entry.id: entry for entry in self._read([key_of(name) for name in ids])}
        there = [found[name] for name in ids if name in found]
        rows = np.stack([entry.blocks for entry in there]) if there else np.zeros((0, *self._layout.document), "f4")
        return [entry.id for entry in there], rows, [entry.payload for entry in there]

    def entries(self, after: str | None = None) -> Iterator[list[tuple[str, Payload]]]:
        """Scroll through ids and payloads, from behind the place of ``after`` if it is given, there or not."""
        for points in self._pages(_BARE_PAGE, False, None if after is None else key_of(after)):
            yield [entry for point in points if (entry := self._plain(point))[0] != after]

    def verify(self) -> Iterator[str]:
        """Scroll through all points with their blocks and check each."""
        try:
            for points in self._pages(_PAGE, True):
                for point in points:
                    try:
                        self._entry(point)
                    except DamagedError as error:
                        yield str(error)
        except StoreError as error:
            yield f"{error} (the rest was not read)"

    def fields(self, wanted: Sequence[str]) -> tuple[set[str], set[str]]:
        """Count the points that have each field, and read the payloads of some hundred points."""
        having = {name: self.kit.models.Filter(must_not=[self.kit.empty(f'p."{name}"')]) for name in wanted}
        points, _ = self._scroll(None, _SAMPLE, True, False)
        there = {name for point in points for name, value in self._plain(point)[1].items() if has(value)}
        return {name for name, condition in having.items() if self._count(condition)}, there

    def search(self, query: Blocks, k: int, where: Node | None, approximate: bool) -> list[Hit]:
        """Ask the engine for the best, and again for all that tie with the k-th but for rounding; score them exactly.

        Raises:
            StoreError: The engine failed, or one of the best entries is damaged.
        """
        if (count := len(self)) == 0:
            return []
        condition = None if where is None else self._condition(where)
        found = self._nearest(query, min(k + 1, count), condition, not approximate, None)
        if not approximate and k < len(found):
            bound = found[k - 1].score - 2 * rounding(query)
            if found[k].score >= bound:
                found = self._nearest(query, count, condition, True, bound)
        hits = []
        for page in self._read_pages([str(point.id) for point in found]):
            scores = exact_scores(np.stack([entry.blocks for entry in page]), query, "images")
            hits += [Hit(entry.id, float(score), entry.payload) for entry, score in zip(page, scores)]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]

    def _condition(self, where: Node) -> Any:
        return to_filter(where, self.kit)

    def _read(self, keys: list[str]) -> list[Entry]:
        return [entry for page in self._read_pages(keys) for entry in page]

    def _read_pages(self, keys: list[str]) -> Iterator[list[Entry]]:
        for at in range(0, len(keys), _PAGE):
            points = self._retrieve(keys[at : at + _PAGE], True, True)
            if points:
                yield [self._entry(point) for point in points]

    def _pages(self, limit: int, vectors: bool, offset: Any = None) -> Iterator[list[Any]]:
        while True:
            points, offset = self._scroll(offset, limit, True, vectors)
            yield points
            if offset is None:
                return

    def _plain(self, point: Any) -> tuple[str, Payload]:
        """Return id and payload of a point after checking what can be checked without its blocks."""
        kept = point.payload or {}
        name, said = kept.get("id"), kept.get("p")
        if not isinstance(name, str) or key_of(name) != str(point.id) or not isinstance(said, dict):
            raise self._damaged(name, f"its id and payload do not fit the point {point.id}")
        text = kept.get("json")
        if not isinstance(text, str) or _crcs(kept)[:1] != [zlib.crc32(text.encode())]:
            raise self._damaged(name, "its payload has another checksum")
        payload: Payload = json.loads(text)
        if not _same(said, payload) or kept.get("flags", {}) != _flags(payload):
            raise self._damaged(name, "what filters see differs from its payload")
        return name, payload

    def _entry(self, point: Any) -> Entry:
        name, payload = self._plain(point)
        blocks = np.asarray((point.vector or {}).get(VECTOR, ()), np.float32)
        if blocks.shape != self._layout.document:
            raise self._damaged(name, f"its blocks have shape {blocks.shape}, not {self._layout.document}")
        if _crcs(point.payload)[1:] != [zlib.crc32(blocks.tobytes())]:
            raise self._damaged(name, "its blocks have another checksum")
        return Entry(name, blocks, payload)

    def _damaged(self, name: Any, what: str) -> DamagedError:
        return DamagedError(
            f"{self.place}: entry {name!r} is damaged ({what}): take it out (--delete ID) and index again"
        )


def to_filter(node: Node, kit: Kit) -> Any:
    """Return a ``where`` tree as an engine's filter."""
    models = kit.models
    if not isinstance(node, Compare):
        parts = [to_filter(part, kit) for part in node.parts]
        return models.Filter(must=parts) if node.every else models.Filter(should=parts)
    key = f'p."{node.field}"'
    if node.op in _BOUNDS:
        limit, name = node.values[0], _BOUNDS[node.op]
        date = None if limit.date is None else limit.date.isoformat()
        bounds = kit.range(**{name: limit.number}) if date is None else kit.dates(**{name: date})
        return models.Filter(must=[models.FieldCondition(key=key, range=bounds)])
    equal: list[Any] = []
    for value in node.values:
        equal.append(models.FieldCondition(key=key, match=models.MatchValue(value=value.text)))
        if value.number is not None:
            equal.append(models.FieldCondition(key=key, range=kit.range(gte=value.number, lte=value.number)))
        if value.flag is not None:
            flag = models.MatchValue(value=value.text)
            equal.append(models.FieldCondition(key=f'flags."{node.field}"', match=flag))
    if node.op == "=":
        return models.Filter(should=equal)
    return models.Filter(must_not=[kit.empty(key), *equal])


def check_side(layout: Layout) -> None:
    """Refuse texts.

    Raises:
        ValueError: The layout is of texts.
    """
    if layout.side == "texts":
        raise ValueError(
            "an index of texts needs a sum over the document's blocks, the engine's MaxSim sums over the query's: "
            "use the memory store (store='memory' / --store memory)"
        )


def key_of(name: str) -> str:
    """Return the point id of an entry's id: a UUID of version 5."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


def _kept(name: str, blocks: Blocks, payload: Payload) -> Payload:
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    crcs = [zlib.crc32(text.encode()), zlib.crc32(blocks.tobytes())]
    kept = {"id": name, "json": text, "p": payload, "crc": crcs}
    flags = _flags(payload)
    return {**kept, "flags": flags} if flags else kept


def _crcs(kept: Payload) -> list[Any]:
    return kept["crc"] if isinstance(kept.get("crc"), list) else []


def _flags(payload: Payload) -> dict[str, list[str]]:
    lists = {key: value if isinstance(value, list) else [value] for key, value in payload.items()}
    words = {key: [str(item).lower() for item in items if isinstance(item, bool)] for key, items in lists.items()}
    return {key: found for key, found in words.items() if found}


def _same(left: Any, right: Any) -> bool:
    """Tell whether two JSON values are equal but for the last digits of floats."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-12)
    return type(left) is type(right) and bool(left == right)
