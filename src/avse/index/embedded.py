"""The default store: Qdrant Edge in this process, one multi-vector a picture, MaxSim by dot product, exact scan.

One process owns a shard. After a clean close ``closed.json`` lists the files and their sizes, which the next opening
compares; after a crash there is none, and the engine replays its log. Knows no model. Quirks of the engine this file
works around: it opens a folder whose files were cut short without a word; its errors are bare ``Exception`` and panics
that are not even that; it builds its graph whenever it is asked to clean up; a full disk kills the process.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import qdrant_edge as engine

from avse.files import sync_folder, write_json
from avse.index.contract import Blocks, Hit, Layout, Payload, StoreError
from avse.index.lock import IndexLock
from avse.index.points import VECTOR, Kit, PointStore, check_side, to_filter
from avse.index.where import Node

_log = logging.getLogger(__name__)
_OPERATION_BYTES = 4 << 20  # of vectors in one operation, far below the log's segment of 32 MiB
_HNSW_FROM_KIB = 2000  # of vectors in a segment: smaller ones are scanned, which is exact
_NEVER_KIB = 1 << 40
_RESERVE_BYTES = 160 << 20  # a new segment and the log are sparse files of some 130 MiB
_SIZES = "closed.json"
_FILTERS = 16  # of which the matching entries are known at once


class EmbeddedStore(PointStore):
    """A Qdrant Edge shard of (n, P, C) images."""

    kit = Kit(engine, engine.RangeFloat, engine.RangeDateTime, engine.IsEmptyCondition)

    def __init__(self, folder: Path, layout: Layout, lock: IndexLock) -> None:
        """Take the lock and open the shard in ``folder``; its log is replayed after a crash.

        Raises:
            StoreError: Another process holds it, or it is damaged.
        """
        super().__init__(layout)
        self._folder, self._lock, self.place = folder, lock, str(folder)
        self._matching: dict[Node, engine.Filter] = {}
        self.changed = False
        """Whether anything was written since it was opened."""
        lock.acquire()
        try:
            self._check_files()
            self._shard = self._load()
            (folder / _SIZES).unlink(missing_ok=True)
            sync_folder(folder)  # or it might be there again after a power failure, with sizes that are no longer true
        except BaseException:
            lock.restore()
            lock.release()
            raise

    @staticmethod
    def create(folder: Path, layout: Layout) -> None:
        """Lay an empty shard into the new folder ``folder``.

        Raises:
            ValueError: The layout is of texts.
        """
        check_side(layout)
        with _engine(str(folder), "creating"):
            engine.EdgeShard.create(str(folder), _config(layout, _HNSW_FROM_KIB)).close()

    def flush(self) -> None:
        """Write the shard's segments to the disk, which also shortens its log."""
        with self._doing("flushing"):
            self._shard.flush()

    def compact(self) -> None:
        """Let the engine rewrite every segment that holds deleted points; a graph of such a segment goes with them."""
        self.flush()
        self.changed = True
        with self._doing("compacting"):
            self._shard.close()
        self._shard = self._load(_config(self._layout, _NEVER_KIB, deleted_threshold=1e-9, vacuum_min_vector_number=1))
        with self._doing("compacting"):
            self._shard.optimize()
            self._shard.flush()
            self._shard.close()
        self._shard = self._load(_config(self._layout, _HNSW_FROM_KIB))

    def search(self, query: Blocks, k: int, where: Node | None, approximate: bool) -> list[Hit]:
        """Search; ``approximate`` first builds the HNSW graph where it is missing and worth it (slow, once)."""
        if approximate:
            self.changed = True
            with self._doing("building the HNSW graph"):
                began = time.monotonic()
                if self._shard.optimize():
                    _log.info("built the HNSW graph of %s in %.1f s", self.place, time.monotonic() - began)
        return super().search(query, k, where, approximate)

    def close(self) -> None:
        """Flush, close the shard, note the sizes of its files and release the lock."""
        if self._lock.held:
            try:
                try:
                    self.flush()
                except StoreError:
                    with suppress(StoreError), self._doing("closing"):  # or its files stay locked in this process
                        self._shard.close()
                    raise
                with self._doing("closing"):
                    self._shard.close()
                write_json(self._folder / _SIZES, self._sizes())
                self._lock.seal(self.changed, f"{self._folder.name}/")
            finally:
                self._lock.release()

    def _load(self, config: engine.EdgeConfig | None = None) -> engine.EdgeShard:
        with self._doing("opening"):
            return engine.EdgeShard.load(str(self._folder), config)

    def _sizes(self) -> dict[str, int]:
        files = sorted(path for path in self._folder.rglob("*") if path.is_file() and path.name not in (_SIZES, "lock"))
        return {path.relative_to(self._folder).as_posix(): path.stat().st_size for path in files}

    def _check_files(self) -> None:
        way_out = "copy it back from a backup or make the index anew (--force)"
        if not any((self._folder / "segments").glob("*")):  # the engine would open it as an empty one
            raise StoreError(f"{self._folder} is damaged: it has no segments; {way_out}")
        if not (self._folder / _SIZES).exists():
            return
        try:
            sizes, found = dict(json.loads((self._folder / _SIZES).read_text("utf-8"))), self._sizes()
            if not all(name.isprintable() and len(name) < 1000 and type(size) is int for name, size in sizes.items()):
                raise ValueError("names of files and their bytes are wanted")
        except (OSError, TypeError, ValueError, RecursionError) as error:
            raise StoreError(f"{self._folder / _SIZES} is damaged ({error}): remove it to open without it") from error
        for name, size in sizes.items():
            if found.get(name) != size:
                there = f"{found[name]} bytes" if name in found else "no such file"
                raise StoreError(f"{self._folder / name} is damaged: {size} bytes expected, {there}; {way_out}")

    def _condition(self, where: Node) -> engine.Filter:
        """Return the ids that match, in place of a filter for which the engine reads every payload at every search."""
        if where not in self._matching:
            asked = engine.ScrollRequest(limit=max(1, len(self)), filter=to_filter(where, self.kit), with_payload=False)
            with self._doing("filtering"):
                ids = {point.id for point in self._shard.scroll(asked)[0]}
            if len(self._matching) == _FILTERS:
                self._matching.clear()
            self._matching[where] = engine.Filter(must=[engine.HasIdCondition(ids)])
        return self._matching[where]

    def _upsert(self, points: Iterator[tuple[str, Blocks, Payload]], count: int) -> None:
        self._matching.clear()
        self.changed = True
        row_bytes = 4 * self._layout.document[0] * self._layout.document[1]
        free = shutil.disk_usage(self._folder).free
        if free < _RESERVE_BYTES + 3 * count * row_bytes:  # its log, its segments and what a merge takes
            raise StoreError(
                f"{self._folder}: {free >> 20:,} MiB are free, too few to add {count:,} entries safely (the engine "
                "dies when its disk is full); nothing is lost of what was there, make room and call again"
            )
        while part := [_point(*point) for point in islice(points, max(1, _OPERATION_BYTES // row_bytes))]:
            with self._doing("adding"):
                self._shard.update(engine.UpdateOperation.upsert_points(part))

    def _remove(self, keys: Sequence[str]) -> None:
        self._matching.clear()
        self.changed = True
        with self._doing("deleting"):
            self._shard.update(engine.UpdateOperation.delete_points(list(keys)))

    def _retrieve(self, keys: Sequence[str], payload: bool | list[str], vectors: bool) -> list[Any]:
        with self._doing("reading"):
            return self._shard.retrieve(list(keys), with_payload=payload, with_vector=vectors)

    def _scroll(self, offset: Any, limit: int, payload: bool | list[str], vectors: bool) -> tuple[list[Any], Any]:
        request = engine.ScrollRequest(offset=offset, limit=limit, with_payload=payload, with_vector=vectors)
        with self._doing("reading"):
            return self._shard.scroll(request)

    def _count(self, condition: Any) -> int:
        with self._doing("counting"):
            return self._shard.count(engine.CountRequest(filter=condition))

    def _nearest(self, query: Blocks, limit: int, condition: Any, exact: bool, above: float | None) -> list[Any]:
        vectors: Any = query  # arrays are taken as they are, and faster than the lists of the engine's stubs
        request = engine.QueryRequest(
            limit=limit,
            query=engine.Query.Nearest(vectors, using=VECTOR),
            filter=condition,
            params=engine.SearchParams(exact=exact),
            score_threshold=above,
            with_payload=False,
        )
        with self._doing("searching"):
            return self._shard.query(request)

    def _doing(self, what: str) -> Any:
        return _engine(self.place, what)


def _config(layout: Layout, graph_from_kib: int, **vacuum: Any) -> engine.EdgeConfig:
    vectors = engine.EdgeVectorParams(
        size=layout.block_width,
        distance=engine.Distance.Dot,
        multivector_config=engine.MultiVectorConfig(engine.MultiVectorComparator.MaxSim),
        datatype=engine.VectorStorageDatatype.Float32,
    )
    return engine.EdgeConfig(
        vectors={VECTOR: vectors},
        hnsw_config=engine.HnswIndexConfig(m=16, ef_construct=128, full_scan_threshold=_HNSW_FROM_KIB),
        optimizers=engine.EdgeOptimizersConfig(indexing_threshold=graph_from_kib, **vacuum),
    )


def _point(key: str, blocks: Blocks, payload: Payload) -> engine.Point:
    vectors: Any = {VECTOR: blocks}
    return engine.Point(key, vectors, payload)


@contextmanager
def _engine(place: str, doing: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:  # the engine raises nothing narrower, and its panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise StoreError(f"{place}: the engine failed while {doing}: {error}") from error
