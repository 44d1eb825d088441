"""Several embedded shards in one index folder, searched one after the other and merged: the Store contract over them.

An id's shard follows from a hash of the id alone, so that every entry has one place. The engine holds Python's
interpreter lock through a query (measured: a thread beside it stands still), so threads would gain nothing: the shards
bound what one engine holds, rewrites and indexes at a time. Knows no engine but by `EmbeddedStore`, and no model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from avse.index.contract import Blocks, Hit, Layout, Payload, StoreError
from avse.index.embedded import EmbeddedStore
from avse.index.lock import IndexLock
from avse.index.where import Node


class ShardedStore:
    """N embedded shards of (n, P, C) images under one lock; ties and scores are those of a single shard."""

    def __init__(self, folder: Path, layout: Layout, lock: IndexLock, shards: int) -> None:
        """Take the lock and open the shards ``folder/0`` to ``folder/N-1``.

        Raises:
            StoreError: Another process holds the index, or a shard is missing or damaged.
        """
        self._layout, self._lock = layout, lock
        self._shards: list[EmbeddedStore] = []
        self._name, self._broken = folder.name, False
        lock.acquire()
        try:
            for number in range(shards):
                place = folder / str(number)
                if not place.is_dir():
                    raise StoreError(f"{place} is missing, one of {shards} shards: copy it back or use --force")
                self._shards.append(EmbeddedStore(place, layout, IndexLock(place)))
        except BaseException:
            self._broken = True
            self._lock.restore()
            self.close()
            raise

    @staticmethod
    def create(folder: Path, layout: Layout, shards: int) -> None:
        """Lay N empty shards into the new folder ``folder``.

        Raises:
            ValueError: The layout is of texts.
        """
        folder.mkdir(parents=True)
        for number in range(shards):
            EmbeddedStore.create(folder / str(number), layout)

    def __len__(self) -> int:
        """Return the number of entries of all shards."""
        return sum(map(len, self._shards))

    def add(self, ids: Sequence[str], blocks: Blocks, payloads: Sequence[Payload]) -> None:
        """Upsert each entry into its shard."""
        for shard, rows in self._split(ids):
            shard.add([ids[row] for row in rows], blocks[rows], [payloads[row] for row in rows])

    def delete(self, ids: Sequence[str]) -> int:
        """Delete each entry from its shard and return how many were there."""
        return sum(shard.delete([ids[row] for row in rows]) for shard, rows in self._split(ids))

    def flush(self) -> None:
        """Write all shards to the disk."""
        for shard in self._shards:
            shard.flush()

    def get(self, ids: Sequence[str]) -> tuple[list[str], Blocks, list[Payload]]:
        """Collect the entries from their shards, in the order asked."""
        found: dict[str, tuple[Blocks, Payload]] = {}
        for shard, rows in self._split(ids):
            names, blocks, payloads = shard.get([ids[row] for row in rows])
            found.update(zip(names, zip(blocks, payloads)))
        names = [name for name in ids if name in found]
        joined = np.zeros((len(names), *self._layout.document), np.float32)
        for row, name in zip(joined, names):
            row[:] = found[name][0]
        return names, joined, [found[name][1] for name in names]

    def entries(self) -> Iterator[list[tuple[str, Payload]]]:
        """Yield the pages of one shard after the other."""
        for shard in self._shards:
            yield from shard.entries()

    def verify(self) -> Iterator[str]:
        """Verify one shard after the other, and that each entry lies in the shard its id belongs to."""
        for number, shard in enumerate(self._shards):
            yield from shard.verify()
            for page in shard.entries():
                for name, _ in page:
                    if (home := shard_of(name, len(self._shards))) != number:
                        yield f"{name!r} lies in shard {number}, its place is shard {home}: make the index anew"

    def compact(self) -> None:
        """Give back the space of deleted and replaced entries, one shard at a time."""
        for shard in self._shards:
            shard.compact()

    def known(self, ids: Sequence[str]) -> set[str]:
        """Ask each id's shard."""
        return {name for shard, rows in self._split(ids) for name in shard.known([ids[row] for row in rows])}

    def fields(self, wanted: Sequence[str]) -> tuple[set[str], set[str]]:
        """Join what the shards have."""
        found, there = zip(*(shard.fields(wanted) for shard in self._shards))
        return set().union(*found), set().union(*there)

    def search(self, query: Blocks, k: int, where: Node | None, approximate: bool) -> list[Hit]:
        """Ask every shard for its k best and merge them."""
        hits = [hit for shard in self._shards for hit in shard.search(query, k, where, approximate)]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]

    def close(self) -> None:
        """Close all shards, whatever one of them says, and release the lock."""
        with ExitStack() as closing:
            closing.callback(self._lock.release)
            closing.push(self._seal)
            for shard in self._shards:
                closing.callback(shard.close)

    def _seal(self, kind: type[BaseException] | None, *_: object) -> None:
        """Seal the index once all shards are closed."""
        if kind is None and not self._broken:
            self._lock.seal(any(shard.changed for shard in self._shards), f"{self._name}/")

    def _split(self, ids: Sequence[str]) -> list[tuple[EmbeddedStore, list[int]]]:
        """Return each shard that has some of ``ids`` with their positions."""
        rows: dict[int, list[int]] = {}
        for row, name in enumerate(ids):
            rows.setdefault(shard_of(name, len(self._shards)), []).append(row)
        return [(self._shards[number], rows[number]) for number in sorted(rows)]


def shard_of(name: str, shards: int) -> int:
    """Return the shard an id belongs to, 0 to ``shards`` - 1: the same on every machine and in every version.

    >>> [shard_of(name, 4) for name in ("a.jpg", "b.jpg", "2019/ü.png")]
    [2, 2, 0]
    """
    digest = hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % shards
