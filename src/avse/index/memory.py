"""The exact store: float32 blocks in one memory-mapped file, scanned whole; the oracle of the others.

``blocks.f32`` holds the rows and ``rows.jsonl`` a line an event (a row added, an id deleted); both only ever grow.
``state.json`` says, atomically, how much of them counts, so what lies behind after a crash is overwritten. Anyone may
read; the first change takes the lock. Knows no model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avse.files import write_json
from avse.index.contract import Blocks, Hit, Layout, Payload, StoreError
from avse.index.lock import OwnerLock
from avse.index.where import Node, has, matches
from avse.scoring import aeom

_CHUNK_BYTES = 1 << 26
_NEAR = 1e-4  # per query block of unit length: well above the float32 error of a score


class MemoryStore:
    """Brute force over (n, P, C) images or (n, Q, C) texts; scores are computed in float64 for the best rows."""

    def __init__(self, folder: Path, layout: Layout, lock: OwnerLock) -> None:
        """Open the store in ``folder`` for reading.

        Raises:
            StoreError: Files are missing, shorter than they should be or unreadable.
        """
        self._folder, self._layout, self._lock = folder, layout, lock
        self._state: dict[str, int] = {}
        self._journal_bytes = 0
        self._names: list[str | None] = []  # of every row; None once it is deleted or replaced
        self._payloads: list[Payload] = []
        self._row_of: dict[str, int] = {}
        self._load()

    @staticmethod
    def create(folder: Path) -> None:
        """Lay an empty store into the new folder ``folder``."""
        folder.mkdir(parents=True)
        for name in ("blocks.f32", "rows.jsonl"):
            (folder / name).touch()
        write_json(folder / "state.json", {"rows": 0, "journal_bytes": 0})

    def __len__(self) -> int:
        """Return the number of living rows."""
        return len(self._row_of)

    def add(self, ids: Sequence[str], blocks: Blocks, payloads: Sequence[Payload]) -> None:
        """Append the rows; former rows of the same ids no longer count."""
        if not ids:
            return
        self._own()
        self._append("blocks.f32", self._rows * self._row_bytes, blocks.tobytes())
        self._log({"id": name, "payload": payload} for name, payload in zip(ids, payloads))
        for name, payload in zip(ids, payloads):
            self._enter(name, payload)

    def delete(self, ids: Sequence[str]) -> int:
        """Log the ids that are there as deleted and return their number."""
        gone = sorted(self.known(ids))
        if gone:
            self._own()
            self._log({"delete": name} for name in gone)
            for name in gone:
                self._names[self._row_of.pop(name)] = None
        return len(gone)

    def flush(self) -> None:
        """Sync both files, then let ``state.json`` name their new lengths."""
        state = {"rows": self._rows, "journal_bytes": self._journal_bytes}
        if state != self._state:
            for name in ("blocks.f32", "rows.jsonl"):
                with open(self._folder / name, "rb+") as stream:
                    os.fsync(stream.fileno())
            write_json(self._folder / "state.json", state)
            self._state = state

    def known(self, ids: Sequence[str]) -> set[str]:
        """Return the living ones of ``ids``."""
        return {name for name in ids if name in self._row_of}

    def fields(self, wanted: Sequence[str]) -> tuple[set[str], set[str]]:
        """Look through the payloads of the living rows."""
        found = {name for row in self._row_of.values() for name, value in self._payloads[row].items() if has(value)}
        return found & set(wanted), found

    def search(self, query: Blocks, k: int, where: Node | None, approximate: bool) -> list[Hit]:
        """Scan the rows that match; see the contract.

        Raises:
            ValueError: ``approximate`` is asked for.
        """
        if approximate:
            raise ValueError("the memory store is exact and has no approximate search: use the embedded store")
        rows = np.array(
            [row for row in sorted(self._row_of.values()) if where is None or matches(where, self._payloads[row])],
            dtype=np.int64,
        )
        if not len(rows):
            return []
        mapped = np.memmap(self._folder / "blocks.f32", np.float32, "r", shape=(self._rows, *self._layout.document))
        scores = np.concatenate([self._score(part, query) for part in self._parts(mapped, rows)])
        if k < len(rows):
            bound = np.partition(scores, -k)[-k] - _NEAR * (1 + np.linalg.norm(query, axis=-1).sum())
            rows = rows[scores >= bound]
        exact = np.concatenate([self._rescore(mapped[rows[at : at + 64]], query) for at in range(0, len(rows), 64)])
        hits = [Hit(self._name(row), float(score), self._payloads[row]) for row, score in zip(rows, exact)]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))[:k]

    def close(self) -> None:
        """Flush and release the lock."""
        if self._lock.held:
            self.flush()
            self._lock.release()

    @property
    def _row_bytes(self) -> int:
        return 4 * self._layout.document[0] * self._layout.document[1]

    @property
    def _rows(self) -> int:
        return len(self._names)

    def _name(self, row: int) -> str:
        name = self._names[row]
        assert name is not None
        return name

    def _enter(self, name: str, payload: Payload) -> None:
        if name in self._row_of:
            self._names[self._row_of[name]] = None
        self._row_of[name] = self._rows
        self._names.append(name)
        self._payloads.append(payload)

    def _own(self) -> None:
        """Take the lock, and first read again what another process may have added meanwhile."""
        if not self._lock.held:
            self._lock.acquire()
            self._load()

    def _append(self, name: str, at: int, data: bytes) -> None:
        with open(self._folder / name, "rb+") as stream:
            stream.truncate(at)
            stream.seek(at)
            stream.write(data)

    def _log(self, events: Iterable[dict[str, object]]) -> None:
        data = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode()
        self._append("rows.jsonl", self._journal_bytes, data)
        self._journal_bytes += len(data)

    def _load(self) -> None:
        self._names, self._payloads, self._row_of = [], [], {}
        try:
            self._state = json.loads((self._folder / "state.json").read_text("utf-8"))
            self._journal_bytes = self._state["journal_bytes"]
            with open(self._folder / "rows.jsonl", "rb") as stream:
                journal = stream.read(self._journal_bytes)
            for line in journal.splitlines():
                event = json.loads(line)
                if "delete" in event:
                    self._names[self._row_of.pop(event["delete"])] = None
                else:
                    self._enter(event["id"], event["payload"])
            size = (self._folder / "blocks.f32").stat().st_size
            if len(journal) != self._journal_bytes or self._rows != self._state["rows"]:
                raise ValueError(f"rows.jsonl has {self._rows} rows of {self._state['rows']}")
            if size < self._rows * self._row_bytes:
                raise ValueError(f"blocks.f32 has {size} bytes of {self._rows * self._row_bytes}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self._folder} is damaged ({error}): make the index anew (--force)") from error

    def _parts(self, mapped: Blocks, rows: NDArray[np.int64]) -> Iterable[Blocks]:
        step = max(1, _CHUNK_BYTES // self._row_bytes)
        for at in range(0, len(rows), step):
            part = rows[at : at + step]
            whole = part[-1] - part[0] + 1 == len(part)
            yield mapped[part[0] : part[-1] + 1] if whole else mapped[part]

    def _score(self, part: Blocks, query: Blocks) -> Blocks:
        if self._layout.side == "images":
            return aeom(part, query[None])[:, 0]
        return aeom(query[None], part)[0]

    def _rescore(self, part: Blocks, query: Blocks) -> NDArray[np.float64]:
        """Score again in float64, each row by the same sums wherever it lies, so that equal rows tie exactly."""
        products = part.astype(np.float64)[:, None] * query.astype(np.float64)[None, :, None]
        similar = products.sum(-1)  # (n, R, blocks)
        best = similar.max(2) if self._layout.side == "images" else similar.max(1)
        return np.asarray(best.sum(-1))
