"""A file of equal rows that grows step by step and survives a kill in the middle of any of them.

Knows bytes and checksums, nothing of what the rows mean. Rows are only ever appended to rows.bin and then counted in
journal.txt, whose every line carries a checksum of itself and of its rows.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from pathlib import Path
from typing import Any

from avse import files

_DATA, _JOURNAL = "rows.bin", "journal.txt"
_log = logging.getLogger(__name__)


class RowStore:
    """The rows made from some items, in the items' order; an item gives one row or is skipped with a reason.

    Attributes:
        done: Items so far.
        rows: Rows so far.
        skips: {item: reason}.
    """

    def __init__(self, folder: Path, header: dict[str, Any], row_bytes: int) -> None:
        """Name the folder, what its rows are made of (JSON), and the bytes of a row; nothing is read yet."""
        self.folder, self.row_bytes, self.data = folder, row_bytes, folder / _DATA
        self._header: dict[str, Any] = json.loads(json.dumps(header))
        self._lines: list[bytes] = []
        self.done, self.rows, self.skips = 0, 0, dict[int, str]()

    def verify(self) -> bool:
        """Read the steps whose line, counts and rows are whole, up to the first that is not; True where all are."""
        self._lines, self.done, self.rows, self.skips = [], 0, 0, {}
        journal = self.folder / _JOURNAL
        lines = journal.read_bytes().splitlines(keepends=True) if journal.is_file() and self.data.is_file() else []
        if not lines or _parse(lines[0]) != self._header:
            return not journal.exists()
        most = self.data.stat().st_size // self.row_bytes
        with self.data.open("rb") as stream:
            for line in lines[1:]:
                step = _parse(line)
                if step is None or not _is_step(step, self.done, self.rows) or step["rows"] > most:
                    break
                part = stream.read((step["rows"] - self.rows) * self.row_bytes)
                if len(part) != (step["rows"] - self.rows) * self.row_bytes or zlib.crc32(part) != step["crc"]:
                    break
                self._lines.append(line)
                self.done, self.rows = step["done"], step["rows"]
                self.skips.update({item: reason for item, reason in step["skips"]})
        whole = len(self._lines) == len(lines) - 1 and self.data.stat().st_size == self.rows * self.row_bytes
        if not whole:
            _log.warning("%s was cut or damaged behind item %d: the rest is made again", self.folder, self.done)
        return whole

    def cut(self) -> None:
        """Cut files back to what `verify` found whole, or begin them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files.write_bytes(self.folder / _JOURNAL, b"".join([_line(self._header), *self._lines]))
        with self.data.open("ab") as stream:
            stream.truncate(self.rows * self.row_bytes)

    def append(self, items: int, part: bytes, skips: dict[int, str]) -> None:
        """Add the rows of the next ``items`` items; on return they are on the disk.

        Raises:
            OSError: The disk refused; what was whole before still is.
        """
        done, rows = self.done + items, self.rows + items - len(skips)
        if len(part) != (rows - self.rows) * self.row_bytes:
            raise ValueError(f"{len(part)} bytes, {items} items with {len(skips)} skips make {rows - self.rows} rows")
        step = {"done": done, "rows": rows, "skips": list(skips.items()), "crc": zlib.crc32(part)}
        for path, content in ((self.data, part), (self.folder / _JOURNAL, _line(step))):  # the count after its rows
            with path.open("ab") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        self.done, self.rows = done, rows
        self.skips.update(skips)


def _line(values: dict[str, Any]) -> bytes:
    text = json.dumps(values, sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _is_step(said: dict[str, Any], done: int, rows: int) -> bool:
    """Tell whether a line counts upwards from what was there: checksums are no proof of who wrote them."""
    skips = said.get("skips")
    return (
        isinstance(skips, list)
        and all(type(said.get(name)) is int for name in ("done", "rows", "crc"))
        and 0 <= said["rows"] - rows == said["done"] - done - len(skips)
        and all(isinstance(skip, list) and [type(part) for part in skip] == [int, str] for skip in skips)
    )


def _parse(line: bytes) -> dict[str, Any] | None:
    """What a journal line says, None where it is not whole."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if not line.endswith(b"\n") or checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None
