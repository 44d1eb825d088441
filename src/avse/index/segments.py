"""A copy of the memory store's rows in int8, a quarter as long to read: derived, and made anew where it is missing.

``rows.i8`` holds segments of `ROWS` rows, block outermost, each with a quantisation step of its own; ``segments.json``
names their steps and checksums. Only full segments are written, by whoever may write; what they do not cover is scanned
in float32. Rows never change, so a segment never does.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avse.files import write_json
from avse.index.contract import Blocks, Side
from avse.scoring import Quantised, quantise, scan

ROWS = 8192


class Segments:
    """The int8 copy of the first rows of shape (B, C)."""

    def __init__(self, values: Path, table: Path, shape: tuple[int, int]) -> None:
        """Look what there is; a copy that is missing or does not fit counts as none."""
        self._values, self._table, self._rows = values, table, ROWS
        self._shape = (shape[0], self._rows, shape[1])
        self._entries: list[tuple[float, int]] = []
        try:
            found = json.loads(table.read_text("utf-8"))
            fits = found["rows"] == self._rows and values.stat().st_size >= len(found["segments"]) * self._bytes
            self._entries = [(float(step), int(crc)) for step, crc in found["segments"]] if fits else []
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
            pass
        self._mapped = self._map()

    def extend(self, blocks: Blocks) -> None:
        """Quantise the full segments of the rows ``blocks`` (n, B, C) that are not there yet, and sync them."""
        missing = range(len(self._entries), len(blocks) // self._rows)
        if not missing:
            return
        with open(self._values, "ab") as stream:
            stream.truncate(missing.start * self._bytes)
            for number in missing:
                made = quantise(blocks[number * self._rows : (number + 1) * self._rows])
                stream.write(made.values.data)
                self._entries.append((made.step, zlib.crc32(made.values.data)))
            stream.flush()
            os.fsync(stream.fileno())
        write_json(self._table, {"rows": self._rows, "segments": self._entries})
        self._mapped = self._map()

    def scan(self, query: Blocks, side: Side, rows: int) -> NDArray[np.float32]:
        """Score the covered ones of the first ``rows`` rows approximately."""
        count = min(len(self._entries), rows // self._rows)
        parts = zip(self._mapped[:count], self._entries)
        scores = [scan(query, Quantised(values, step), side) for values, (step, _) in parts]
        return np.concatenate(scores) if scores else np.zeros(0, np.float32)

    def verify(self) -> Iterator[str]:
        """Yield a sentence where the copy is not what was written."""
        for number, (values, (_, crc)) in enumerate(zip(self._mapped, self._entries)):
            if zlib.crc32(values.data) != crc:
                yield (
                    f"{self._values}: segment {number} has another checksum, searches may miss entries: "
                    "delete the file, the next change makes it anew"
                )

    def remove(self) -> None:
        """Delete the copy's files."""
        self._entries, self._mapped = [], self._mapped[:0]
        for path in (self._table, self._values):
            path.unlink(missing_ok=True)

    @property
    def _bytes(self) -> int:
        return self._shape[0] * self._shape[1] * self._shape[2]

    def _map(self) -> NDArray[np.int8]:
        if not self._entries:
            return np.zeros((0, *self._shape), np.int8)
        return np.memmap(self._values, np.int8, "r", shape=(len(self._entries), *self._shape))
