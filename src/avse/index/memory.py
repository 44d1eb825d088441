"""The exact store: float32 blocks in one memory-mapped file, scanned whole; the oracle of the others.

A query reads an int8 copy of the rows, looks again in float32 at every row whose int8 score comes near the k-th (six
standard deviations of the copy's error, measured on a sample in the call, on both sides), and once more in float64 at
what float32 cannot tell apart. Anyone may read; the first change takes the lock. Knows no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avse.index.contract import Blocks, Hit, Layout, Payload
from avse.index.exact import exact_scores, rounding
from avse.index.lock import IndexLock
from avse.index.rows import Rows
from avse.index.segments import Segments
from avse.index.where import Node, has
from avse.scoring import aeom
from avse.scoring.query import look_again
from avse.scoring.rows import read_rows
from avse.scoring.topk import topk

_CHUNK_BYTES = 1 << 24
_FEW = 32  # rows that are one in so many or fewer are picked out and scored in float32
_PAGE = 1000
_SPARE = 32  # rows beyond the first k that queries asked together look at: more ties than these are looked for alone
_WIDE = 4096  # rows a query beyond which asking together does not pay
_FIRST = 200  # entries that are read to find out which fields there are
Scores = NDArray[np.float32]
Numbers = NDArray[np.int64]


class MemoryStore:
    """Brute force over (n, P, C) images or (n, Q, C) texts; scores and order are those of float64."""

    def __init__(self, folder: Path, layout: Layout, lock: IndexLock) -> None:
        """Open the store in ``folder`` for reading.

        Raises:
            StoreError: Files are missing, shorter than they should be or unreadable.
        """
        self._layout, self._lock, self._changed = layout, lock, False
        self._rows = Rows(folder, layout.document)
        self._segments = self._find_segments()

    @staticmethod
    def create(folder: Path) -> None:
        """Lay an empty store into the new folder ``folder``."""
        Rows.create(folder)

    def __len__(self) -> int:
        """Return the number of living rows."""
        return len(self._rows.number_of)

    def add(self, ids: Sequence[str], blocks: Blocks, payloads: Sequence[Payload]) -> None:
        """Append the rows; former rows of the same ids no longer count."""
        if ids:
            self.own()
            self._changed = True
            self._rows.add(ids, blocks, payloads)

    def delete(self, ids: Sequence[str]) -> int:
        """Log the ids that are there as deleted and return their number."""
        if not self.known(ids):
            return 0
        self.own()
        gone = sorted(self.known(ids))
        self._changed = True
        self._rows.delete(gone)
        return len(gone)

    def flush(self) -> None:
        """Sync the rows, then bring the int8 copy up to them."""
        if self._lock.held:
            self._rows.flush()
            self._segments.extend(self._rows.blocks())

    def known(self, ids: Sequence[str]) -> set[str]:
        """Return the living ones of ``ids``."""
        return {name for name in ids if name in self._rows.number_of}

    def get(self, ids: Sequence[str]) -> tuple[list[str], Blocks, list[Payload]]:
        """Read rows back and check them."""
        names = [name for name in ids if name in self._rows.number_of]
        numbers = [self._rows.number_of[name] for name in names]
        blocks = read_rows(self._rows.blocks(), np.array(numbers, np.int64))
        payloads = []
        for row, part in zip(self._rows.read(numbers), blocks):
            self._rows.check(row, part)
            payloads.append(row.payload)
        return names, blocks, payloads

    def entries(self) -> Iterator[list[tuple[str, Payload]]]:
        """Read the lines of the rows that live when they are come to."""
        for at in range(0, self._rows.count, _PAGE):
            numbers = at + np.flatnonzero(self._rows.alive[at : at + _PAGE])
            yield [(row.id, row.payload) for row in self._rows.read(numbers.tolist())]

    def verify(self) -> Iterator[str]:
        """Check every living row and every segment of the int8 copy."""
        yield from self._rows.verify()
        yield from self._segments.verify()

    def compact(self) -> None:
        """Rewrite both files without dead rows, and the int8 copy with them."""
        self.own()
        if not self._rows.alive.all():
            former = self._segments
            self._changed = True
            self._rows.compact()
            former.remove()
            self._segments = self._find_segments()
        self.flush()

    def fields(self, wanted: Sequence[str]) -> tuple[set[str], set[str]]:
        """Look through the wanted columns, and through the payloads of the first rows."""
        first = np.flatnonzero(self._rows.alive)[:_FIRST].tolist()
        there = {name for row in self._rows.read(first) for name, value in row.payload.items() if has(value)}
        return {name for name in wanted if any(map(has, self._rows.values(name)))}, there

    def search(self, query: Blocks, k: int, where: Node | None, approximate: bool) -> list[Hit]:
        """Scan the rows that match; see the contract.

        Raises:
            ValueError: ``approximate`` is asked for.
            StoreError: One of the best rows is damaged.
        """
        if approximate:
            raise ValueError("the memory store is exact and has no approximate search: use the embedded store")
        wanted = self._rows.alive if where is None else self._rows.mask(where)
        numbers, blocks = np.flatnonzero(wanted), self._rows.blocks()
        if not len(numbers):
            return []
        if len(numbers) * _FEW <= len(blocks):
            scores = self._score(blocks, numbers, query)
        else:
            numbers, scores = self._scan(blocks, numbers, query, k)
        numbers = numbers[scores >= _bound(scores, k) - 2 * rounding(query)]
        return self._settle(numbers, query, k)

    def _settle(self, numbers: Numbers, query: Blocks, k: int) -> list[Hit]:
        """Return the first k of the rows that may be among them, scored in float64 and checked."""
        if not len(numbers):
            return []
        blocks = self._rows.blocks()
        pages = (read_rows(blocks, numbers[at : at + _PAGE]) for at in range(0, len(numbers), _PAGE))
        best = np.concatenate([exact_scores(page, query, self._layout.side) for page in pages])
        found = sorted(zip(self._rows.read(numbers.tolist()), best), key=lambda pair: (-pair[1], pair[0].id))[:k]
        for (row, _), part in zip(found, read_rows(blocks, np.array([row.number for row, _ in found]))):
            self._rows.check(row, part)
        return [Hit(row.id, float(score), row.payload) for row, score in found]

    def search_many(self, queries: Sequence[Blocks], ks: Sequence[int]) -> list[list[Hit]]:
        """Answer several queries without a condition as `search` does; those of one shape share one pass over the rows.

        Args:
            queries: (R, C) each.
            ks: How many each wants.
        """
        found: list[list[Hit]] = [[] for _ in queries]
        shapes: dict[tuple[int, ...], list[int]] = {}
        for at, query in enumerate(queries):
            shapes.setdefault(query.shape, []).append(at)
        blocks, dead = self._rows.blocks(), int(np.count_nonzero(~self._rows.alive))
        for members in shapes.values():
            wide = max(ks[at] for at in members) + _SPARE + dead
            if len(members) == 1 or wide > _WIDE:
                for at in members:
                    found[at] = self.search(queries[at], ks[at], None, False)
                continue
            asked = np.stack([queries[at] for at in members])
            best = topk(asked, blocks, wide, "texts" if self._layout.side == "images" else "images")
            for at, scores, numbers in zip(members, best.scores, best.ids):
                alive = self._rows.alive[numbers]
                near = numbers[alive][scores[alive] >= _bound(scores[alive], ks[at]) - 2 * rounding(queries[at])]
                whole = len(numbers) == len(blocks) or len(near) < np.count_nonzero(alive)
                found[at] = (
                    self._settle(near, queries[at], ks[at]) if whole else self.search(queries[at], ks[at], None, False)
                )
        return found

    def close(self) -> None:
        """Flush and release the lock."""
        try:
            self.flush()
            self._lock.seal(self._changed)
        finally:
            self._lock.release()

    def own(self) -> None:
        """Take the lock, and first read again what another process may have added meanwhile."""
        if not self._lock.held:
            self._lock.acquire()
            self._rows.load()
            self._segments = self._find_segments()

    def _find_segments(self) -> Segments:
        return Segments(self._rows.file("rows.i8"), self._rows.file("segments.json"), self._layout.document)

    def _scan(self, blocks: Blocks, numbers: Numbers, query: Blocks, k: int) -> tuple[Numbers, Scores]:
        """Return the rows of ``numbers`` that may be among the first k, with float32 scores."""
        rough = np.empty(len(blocks), np.float32)
        covered = self._segments.scan(query, self._layout.side, len(blocks))
        rough[: len(covered)] = covered
        rough[len(covered) :] = self._score(blocks, slice(len(covered), None), query)
        inside = int(np.searchsorted(numbers, len(covered)))
        rough = rough[numbers]
        if not inside:
            return numbers, rough
        near, scores = look_again(
            rough,
            k,
            lambda rows: self._score(blocks, numbers[rows], query),
            sampled=inside,
            slack=2 * rounding(query),
        )
        return numbers[near], scores

    def _score(self, blocks: Blocks, rows: Numbers | slice, query: Blocks) -> Scores:
        """Score rows in float32, some at a time."""
        picked = range(len(blocks))[rows] if isinstance(rows, slice) else rows
        step = max(1, _CHUNK_BYTES // self._rows.row_bytes)
        scores = np.empty(len(picked), np.float32)
        for at in range(0, len(picked), step):
            part = picked[at : at + step]
            rows_of = blocks[part.start : part.stop] if isinstance(part, range) else read_rows(blocks, part)
            if self._layout.side == "images":
                scores[at : at + step] = aeom(rows_of, query[None])[:, 0]
            else:
                scores[at : at + step] = aeom(query[None], rows_of)[0]
        return scores


def _bound(scores: Scores, k: int) -> float:
    """Return the k-th best score, or minus infinity where there are no more than k."""
    return float(np.partition(scores, -k)[-k]) if k < len(scores) else -np.inf
