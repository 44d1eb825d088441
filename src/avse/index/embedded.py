"""The default store: Qdrant Edge in this process, one multi-vector a picture, MaxSim by dot product, exact scan.

MaxSim sums over the query's blocks, which is S for images; texts would need the sum over the document's, so they are
refused (method, section 3). Ids become UUIDs (version 5), the true id lies beside the payload. One process owns a
shard. Knows no model. Quirks of the engine this file works around: it matches ``True`` as 1, so truth values are kept a
second time as words; its score threshold is exclusive; its errors are bare ``Exception``.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as engine

from avse.index.contract import Blocks, Hit, Layout, Payload, StoreError
from avse.index.lock import OwnerLock
from avse.index.where import Compare, Node, has

_log = logging.getLogger(__name__)
_VECTOR = "blocks"
_OPERATION_BYTES = 4 << 20  # of vectors in one operation, far below the log's segment of 32 MiB
_HNSW_FROM_KIB = 2000  # of vectors in a segment: smaller ones are scanned, which is exact
_SAMPLE = 200  # points that are read to find out which fields there are
_BOUNDS = {"<": "lt", "<=": "lte", ">": "gt", ">=": "gte"}


class EmbeddedStore:
    """A Qdrant Edge shard of (n, P, C) images."""

    def __init__(self, folder: Path, layout: Layout, lock: OwnerLock) -> None:
        """Take the lock and open the shard in ``folder``; its log is replayed after a crash.

        Raises:
            StoreError: Another process holds it, or it is damaged.
        """
        self._folder, self._layout, self._lock = folder, layout, lock
        lock.acquire()
        try:
            if not any((folder / "segments").glob("*")):  # the engine would open it as an empty one
                raise StoreError(f"{folder} is damaged: it has no segments; make the index anew (--force)")
            with _engine(folder, "opening"):
                self._shard = engine.EdgeShard.load(str(folder))
        except BaseException:
            lock.release()
            raise

    @staticmethod
    def create(folder: Path, layout: Layout) -> None:
        """Lay an empty shard into the new folder ``folder``.

        Raises:
            ValueError: The layout is of texts.
        """
        if layout.side == "texts":
            raise ValueError(
                "an index of texts needs a sum over the document's blocks, the engine's MaxSim sums over the query's: "
                "use the memory store (store='memory' / --store memory)"
            )
        vectors = engine.EdgeVectorParams(
            size=layout.block_width,
            distance=engine.Distance.Dot,
            multivector_config=engine.MultiVectorConfig(engine.MultiVectorComparator.MaxSim),
            datatype=engine.VectorStorageDatatype.Float32,
        )
        config = engine.EdgeConfig(
            vectors={_VECTOR: vectors},
            hnsw_config=engine.HnswIndexConfig(m=16, ef_construct=128, full_scan_threshold=_HNSW_FROM_KIB),
            optimizers=engine.EdgeOptimizersConfig(indexing_threshold=_HNSW_FROM_KIB),
        )
        with _engine(folder, "creating"):
            engine.EdgeShard.create(str(folder), config).close()

    def __len__(self) -> int:
        """Return the number of points."""
        with _engine(self._folder, "counting"):
            return self._shard.count(engine.CountRequest())

    def add(self, ids: Sequence[str], blocks: Blocks, payloads: Sequence[Payload]) -> None:
        """Upsert the points; each operation is in the engine's log before this returns."""
        step = max(1, _OPERATION_BYTES // blocks[:1].nbytes) if ids else 1
        for at in range(0, len(ids), step):
            part = slice(at, at + step)
            points = [_point(*entry) for entry in zip(ids[part], blocks[part], payloads[part])]
            with _engine(self._folder, "adding"):
                self._shard.update(engine.UpdateOperation.upsert_points(points))

    def delete(self, ids: Sequence[str]) -> int:
        """Delete the points that are there and return their number."""
        gone = self.known(ids)
        if gone:
            with _engine(self._folder, "deleting"):
                self._shard.update(engine.UpdateOperation.delete_points([_uuid(name) for name in sorted(gone)]))
        return len(gone)

    def flush(self) -> None:
        """Write the shard's segments to the disk, which also shortens its log."""
        with _engine(self._folder, "flushing"):
            self._shard.flush()

    def known(self, ids: Sequence[str]) -> set[str]:
        """Look the ids up by their UUIDs."""
        found: set[str] = set()
        for at in range(0, len(ids), 1000):
            points: list[engine.PointId] = [_uuid(name) for name in ids[at : at + 1000]]
            with _engine(self._folder, "reading"):
                records = self._shard.retrieve(points, with_payload=["id"], with_vector=False)
            found.update((record.payload or {})["id"] for record in records)
        return found

    def fields(self, wanted: Sequence[str]) -> tuple[set[str], set[str]]:
        """Count the points that have each field, and read the payloads of some hundred points."""
        with _engine(self._folder, "reading"):
            found = {name for name in wanted if self._shard.count(engine.CountRequest(filter=_having(name)))}
            records, _ = self._shard.scroll(engine.ScrollRequest(limit=_SAMPLE, with_payload=["p"], with_vector=False))
        payloads = [(record.payload or {})["p"] for record in records]
        return found, {name for payload in payloads for name, value in payload.items() if has(value)}

    def search(self, query: Blocks, k: int, where: Node | None, approximate: bool) -> list[Hit]:
        """Ask the engine; ``approximate`` first builds its HNSW graph where it is missing and worth it (slow, once)."""
        if approximate:
            with _engine(self._folder, "building the HNSW graph"):
                began = time.monotonic()
                if self._shard.optimize():
                    _log.info("built the HNSW graph of %s in %.1f s", self._folder, time.monotonic() - began)
        count = len(self)
        if count == 0:
            return []
        found = self._nearest(query, min(k + 1, count), where, approximate)
        if not approximate and k < len(found) and found[k].score == found[k - 1].score:  # a tie across the cut
            below = float(np.nextafter(np.float32(found[k].score), np.float32(-np.inf)))
            found = self._nearest(query, count, where, approximate, below)
        hits = [Hit(point.payload["id"], point.score, point.payload["p"]) for point in found if point.payload]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]

    def close(self) -> None:
        """Flush, close the shard and release the lock."""
        if self._lock.held:
            try:
                self.flush()
                self._shard.close()
            finally:
                self._lock.release()

    def _nearest(
        self, query: Blocks, limit: int, where: Node | None, approximate: bool, above: float | None = None
    ) -> list[engine.ScoredPoint]:
        vectors: Any = query  # arrays are taken as they are, and faster than the lists of the engine's stubs
        request = engine.QueryRequest(
            limit=limit,
            query=engine.Query.Nearest(vectors, using=_VECTOR),
            filter=to_filter(where) if where is not None else None,
            params=engine.SearchParams(exact=not approximate),
            score_threshold=above,
            with_payload=True,
        )
        with _engine(self._folder, "searching"):
            return self._shard.query(request)


def to_filter(node: Node) -> engine.Filter:
    """Return a ``where`` tree as the engine's filter."""
    if not isinstance(node, Compare):
        parts: list[engine.ConditionType] = [to_filter(part) for part in node.parts]
        return engine.Filter(must=parts) if node.every else engine.Filter(should=parts)
    key = f'p."{node.field}"'
    if node.op in _BOUNDS:
        bounds = engine.RangeFloat(**{_BOUNDS[node.op]: node.values[0].number})
        return engine.Filter(must=[engine.FieldCondition(key, range=bounds)])
    equal: list[engine.ConditionType] = []
    for value in node.values:
        equal.append(engine.FieldCondition(key, match=engine.MatchValue(value.text)))
        if value.number is not None:
            bounds = engine.RangeFloat(gte=value.number, lte=value.number)
            equal.append(engine.FieldCondition(key, range=bounds))
        if value.flag is not None:
            equal.append(engine.FieldCondition(f'flags."{node.field}"', match=engine.MatchValue(value.text)))
    if node.op == "=":
        return engine.Filter(should=equal)
    return engine.Filter(must_not=[engine.IsEmptyCondition(key), *equal])


def _having(field: str) -> engine.Filter:
    return engine.Filter(must_not=[engine.IsEmptyCondition(f'p."{field}"')])


def _point(name: str, blocks: Blocks, payload: Payload) -> engine.Point:
    vectors: Any = {_VECTOR: blocks}
    kept: dict[str, Any] = {"id": name, "p": payload}
    flags = {key: words for key, value in payload.items() if (words := _flags(value))}
    if flags:
        kept["flags"] = flags
    return engine.Point(_uuid(name), vectors, kept)


def _flags(value: Any) -> list[str]:
    items = value if isinstance(value, list) else [value]
    return [str(item).lower() for item in items if isinstance(item, bool)]


def _uuid(name: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, name)


@contextmanager
def _engine(folder: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the engine raises nothing narrower
        raise StoreError(f"{folder}: the engine failed while {doing}: {error}") from error
