"""The files of the memory store: rows of float32 blocks and a line a row, both only ever growing, and what is cached.

``blocks.f32`` holds (n, P or Q, C) rows; ``rows.jsonl`` a line an event: checksum of the line, checksum of the blocks,
the id and the payload as JSON, or an id that is deleted. ``state.json`` says, atomically, how much of them counts, so
what lies behind after a crash is overwritten, and which generation of files it means. Payloads stay on the disk. Of a
field that a filter asks for, the different values and a number a row are kept. Knows no scores and no lock.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avse.files import sync_folder, write_json
from avse.index.contract import Blocks, Payload, StoreError
from avse.index.where import Compare, Node, fields, matches

_BLOCKS, _LINES, _STATE = "blocks.f32", "rows.jsonl", "state.json"
_ID_AT = 18  # where the id of a line begins, behind two checksums
_DELETED = "-" * 8
_PAGE = 1024
_decode = json.JSONDecoder().raw_decode
Mask = NDArray[np.bool_]


class Row(NamedTuple):
    """One row read back: number, id, payload and the checksum of its blocks."""

    number: int
    id: str
    payload: Payload
    crc: int


class _Column:
    """One payload field: its different values and which of them each row has; 0 is None, as in dead rows."""

    def __init__(self) -> None:
        self.values: list[Any] = [None]
        self.codes: NDArray[np.int32] = np.zeros(0, np.int32)
        self._code_of = {"null": 0}

    def extend(self, size: int, rows: Iterable[tuple[int, Any]]) -> None:
        codes = np.zeros(size, np.int32)
        codes[: len(self.codes)] = self.codes
        for row, value in rows:
            code = self._code_of.setdefault(json.dumps(value), len(self.values))
            if code == len(self.values):
                self.values.append(value)
            codes[row] = code
        self.codes = codes


class Rows:
    """Rows of shape (B, C) in a folder; `number_of` maps the living ids to their rows."""

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        """Read which rows there are.

        Raises:
            StoreError: Files are missing, shorter than they should be or unreadable.
        """
        self._folder, self._shape = folder, shape
        self.row_bytes = 4 * shape[0] * shape[1]
        self.load()

    @staticmethod
    def create(folder: Path) -> None:
        """Lay empty files into the new folder ``folder``."""
        folder.mkdir(parents=True)
        for name in (_BLOCKS, _LINES):
            (folder / name).touch()
        write_json(folder / _STATE, {"rows": 0, "journal_bytes": 0, "generation": 0})

    def load(self) -> None:
        """Read the files again; errors as in the constructor."""
        self.number_of: dict[str, int] = {}
        self.count, self._bytes = 0, 0
        self._alive: Mask = np.zeros(0, bool)
        self._starts: NDArray[np.int64] = np.zeros(0, np.int64)
        self._columns: dict[str, _Column] = {}
        try:
            self._state: dict[str, int] = json.loads((self._folder / _STATE).read_text("utf-8"))
            if not all(type(self._state[name]) is int for name in ("generation", "rows", "journal_bytes")):
                raise ValueError(f"{_STATE} holds {self._state}, whole numbers are wanted")
            self.generation = self._state["generation"]
            size = self.file(_BLOCKS).stat().st_size
            self._reserve(min(self._state["rows"], size // self.row_bytes))
            self._read_lines()
            if self._bytes != self._state["journal_bytes"] or self.count != self._state["rows"]:
                raise ValueError(f"{self.file(_LINES).name} has {self.count} rows of {self._state['rows']}")
            if size < self.count * self.row_bytes:
                raise ValueError(f"{self.file(_BLOCKS).name} has {size} bytes of {self.count * self.row_bytes}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise StoreError(f"{self._folder} is damaged ({error}): make the index anew (--force)") from error

    def file(self, name: str, later: int = 0) -> Path:
        """Return a file of this generation, or a later one: ``blocks.f32``, after `compact` ``blocks.1.f32``."""
        stem, _, kind = name.partition(".")
        generation = self.generation + later
        return self._folder / (f"{stem}.{generation}.{kind}" if generation else name)

    @property
    def alive(self) -> Mask:
        """Which of the rows count, (n,); do not write into it."""
        return self._alive[: self.count]

    def blocks(self) -> Blocks:
        """Map all rows, (n, B, C)."""
        if not self.count:
            return np.zeros((0, *self._shape), np.float32)
        with self._there(_BLOCKS) as path:
            return np.memmap(path, np.float32, "r", shape=(self.count, *self._shape))

    def add(self, ids: Sequence[str], blocks: Blocks, payloads: Sequence[Payload]) -> None:
        """Append rows; former rows of the same ids no longer count.

        Raises:
            StoreError: The disk refused; no row was added.
        """
        lines = [_line(f"{_crc(rows):08x}", name, said) for rows, name, said in zip(blocks, ids, payloads)]
        self._append(_BLOCKS, self.count * self.row_bytes, blocks.tobytes())
        self._append(_LINES, self._bytes, b"".join(lines))
        self._reserve(self.count + len(lines))
        for name, line in zip(ids, lines):
            self._enter(name, len(line))

    def delete(self, ids: Sequence[str]) -> None:
        """Log ids that are there as deleted; errors as in `add`."""
        lines = b"".join(_line(_DELETED, name) for name in ids)
        self._append(_LINES, self._bytes, lines)
        self._bytes += len(lines)
        for name in ids:
            self._alive[self.number_of.pop(name)] = False

    def flush(self) -> None:
        """Sync both files, then let ``state.json`` name their new lengths."""
        state = {"rows": self.count, "journal_bytes": self._bytes, "generation": self.generation}
        if state != self._state:
            for name in (_BLOCKS, _LINES):
                with open(self.file(name), "rb+") as stream:
                    os.fsync(stream.fileno())
            write_json(self._folder / _STATE, state)
            self._state = state

    def read(self, numbers: Iterable[int]) -> Iterator[Row]:
        """Read the lines of rows, one by one.

        Raises:
            StoreError: One has another checksum.
        """
        for number, line in self._lines(numbers):
            row = self._parse(number, line)
            if isinstance(row, str):
                raise StoreError(row)
            yield row

    def check(self, row: Row, blocks: Blocks) -> None:
        """Raise StoreError where ``blocks`` (B, C) are not those that were written."""
        if row.crc != _crc(blocks):
            raise StoreError(self._damage(row.id, "its blocks have another checksum"))

    def verify(self) -> Iterator[str]:
        """Read all living rows and yield a sentence for each that is damaged."""
        for at in range(0, self.count, _PAGE):
            numbers = at + np.flatnonzero(self.alive[at : at + _PAGE])
            blocks = self.blocks()
            for number, line in self._lines(numbers.tolist()):
                row = self._parse(number, line)
                if isinstance(row, str):
                    yield row
                elif row.crc != _crc(blocks[number]):
                    yield self._damage(row.id, "its blocks have another checksum")

    def mask(self, node: Node) -> Mask:
        """Tell which rows match a condition, (n,); dead rows never do."""
        self._extend_columns(fields(node))
        return self._mask(node) & self.alive

    def values(self, field: str) -> Iterator[Any]:
        """Yield the different values of a payload field that living rows have."""
        self._extend_columns([field])
        column = self._columns[field]
        return (column.values[code] for code in np.unique(column.codes[self.alive]))

    def compact(self) -> None:
        """Write the living rows into files of the next generation, let the state name them and delete the old ones.

        Raises:
            StoreError: The disk refused; everything is as it was.
        """
        self.flush()
        old, new = ([self.file(name, later) for name in (_BLOCKS, _LINES)] for later in (0, 1))
        living, blocks = np.flatnonzero(self.alive), self.blocks()
        try:
            with self._writing(self._folder), open(new[0], "wb") as rows, open(new[1], "wb") as lines:
                for at in range(0, len(living), _PAGE):
                    rows.write(blocks[living[at : at + _PAGE]].tobytes())
                    lines.writelines(line for _, line in self._lines(living[at : at + _PAGE].tolist()))
                for stream in (rows, lines):
                    stream.flush()
                    os.fsync(stream.fileno())
                state = {"rows": len(living), "journal_bytes": lines.tell(), "generation": self.generation + 1}
                sync_folder(self._folder)
                write_json(self._folder / _STATE, state)
        except BaseException:
            for path in new:
                path.unlink(missing_ok=True)
            raise
        del blocks
        self.load()
        for path in old:
            path.unlink(missing_ok=True)

    def _reserve(self, size: int) -> None:
        if size > len(self._starts):
            more = max(size, 2 * len(self._starts)) - len(self._starts)
            self._starts = np.concatenate([self._starts, np.zeros(more, np.int64)])
            self._alive = np.concatenate([self._alive, np.zeros(more, bool)])

    def _enter(self, name: str, size: int) -> None:
        if (former := self.number_of.get(name)) is not None:
            self._alive[former] = False
        self.number_of[name] = self.count
        self._alive[self.count], self._starts[self.count] = True, self._bytes
        self.count += 1
        self._bytes += size

    def _read_lines(self) -> None:
        """Enter every line; only ids are parsed, and only deletions checked."""
        with open(self.file(_LINES), "rb") as stream:
            while self._bytes < self._state["journal_bytes"]:
                line = stream.readline()
                if not line.endswith(b"\n"):
                    raise ValueError(f"{self.file(_LINES).name} ends after {self._bytes + len(line)} bytes")
                text = line.decode()
                name, deleted = _decode(text, _ID_AT)[0], text[9:17] == _DELETED
                if deleted and not _is_whole(line):
                    raise ValueError(f"the line at byte {self._bytes} has another checksum")
                if not isinstance(name, str):
                    raise ValueError(f"the line at byte {self._bytes} has no id")
                if deleted:
                    self._alive[self.number_of.pop(name)] = False
                    self._bytes += len(line)
                else:
                    self._enter(name, len(line))

    def _lines(self, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        with self._there(_LINES) as path, open(path, "rb") as stream:
            for number in numbers:
                stream.seek(int(self._starts[number]))
                yield number, stream.readline()

    def _parse(self, number: int, line: bytes) -> Row | str:
        """Return the row of a line, or what is wrong with it."""
        try:
            if _is_whole(line):
                text = line.decode()
                name, end = _decode(text, _ID_AT)
                if isinstance(payload := _decode(text, end + 1)[0], dict):
                    return Row(number, name, payload, int(text[9:17], 16))
        except (ValueError, IndexError, RecursionError):
            pass
        return self._damage(line[_ID_AT:80].decode("utf-8", "backslashreplace"), "its line has another checksum")

    def _damage(self, name: str, what: str) -> str:
        return f"{self._folder}: entry {name!r} is damaged ({what}): take it out (--delete ID) and index again"

    def _extend_columns(self, wanted: Sequence[str]) -> None:
        columns = [(name, self._columns.setdefault(name, _Column())) for name in wanted]
        starts = {len(column.codes) for _, column in columns}
        for start in starts:
            if start < self.count:
                new = [(name, column) for name, column in columns if len(column.codes) == start]
                found: dict[str, list[tuple[int, Any]]] = {name: [] for name, _ in new}
                for row in self.read((start + np.flatnonzero(self.alive[start:])).tolist()):
                    for name, _ in new:
                        if (value := row.payload.get(name)) is not None:
                            found[name].append((row.number, value))
                for name, column in new:
                    column.extend(self.count, found[name])

    def _mask(self, node: Node) -> Mask:
        if isinstance(node, Compare):
            column = self._columns[node.field]
            table = np.array([matches(node, {node.field: value}) for value in column.values])
            found: Mask = table[column.codes]
            return found
        join = np.logical_and if node.every else np.logical_or
        parts: Mask = join.reduce([self._mask(part) for part in node.parts])
        return parts

    def _append(self, name: str, at: int, data: bytes) -> None:
        with self._writing(self.file(name)), open(self.file(name), "rb+") as stream:
            if stream.seek(0, os.SEEK_END) > at:
                stream.truncate(at)
            stream.seek(at)
            stream.write(data)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written ({error.strerror or error}): nothing of this call was kept, and nothing "
                "is lost of what was there; make room and call again"
            ) from error

    @contextmanager
    def _there(self, name: str) -> Iterator[Path]:
        try:
            yield self.file(name)
        except FileNotFoundError as error:
            raise StoreError(f"{error.filename} is gone: another process compacted the index; open it again") from error


def _line(blocks: str, name: str, payload: Payload | None = None) -> bytes:
    parts = [blocks, json.dumps(name, ensure_ascii=False)]
    if payload is not None:
        parts.append(json.dumps(payload, ensure_ascii=False, separators=(",", ":")))
    text = " ".join(parts).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _is_whole(line: bytes) -> bool:
    return line[:9] == b"%08x " % zlib.crc32(line[9:-1])


def _crc(blocks: Blocks) -> int:
    return zlib.crc32(np.ascontiguousarray(blocks).data)
