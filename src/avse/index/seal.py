"""``seal.json``: the digest of every file of an index folder, written when it is closed, gone while it may change.

It covers what no checksum of an entry does: the engine's own files, the journal, the manifest, uploads. A file that
kept its size and times while the index was open keeps its digest, so damage that came before is not sealed in; files
that the engine maps and may write without a new time are read again after a change. The empty ``lock`` of a sealed
index says that there must be a seal; a process that died leaves its number there. Knows files, no store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from avse.files import write_json
from avse.lock import NAME as LOCK

NAME = "seal.json"
_CHUNK = 1 << 16
_ZEROS = bytes(_CHUNK)
Stats = dict[str, tuple[int, int, int]]


def stats_of(folder: Path) -> Stats:
    """Return size, time of change and inode of every file below ``folder`` but lock and seal, by posix path."""
    found: Stats = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in (LOCK, NAME) and path.is_file():
            facts = path.stat()
            found[name] = facts.st_size, facts.st_mtime_ns, facts.st_ino
    return found


def digest(path: Path) -> str:
    """Return the SHA-256 over a file's size and its parts that are not zero, with their places.

    Holes of sparse files are not read, and it makes no difference whether a copy has filled them.
    """
    found = hashlib.sha256()
    with open(path, "rb", buffering=0) as stream:
        size = stream.seek(0, os.SEEK_END)
        found.update(size.to_bytes(8, "little"))
        at = _data(stream, 0, size)
        while at < size:
            stream.seek(at)
            if not (part := stream.read(_CHUNK - at % _CHUNK)):
                break
            if part != _ZEROS[: len(part)]:
                found.update(at.to_bytes(8, "little") + part)
            at = _data(stream, at + len(part), size)
    return found.hexdigest()


def read(folder: Path) -> dict[str, str]:
    """Return the digests that were sealed.

    Raises:
        OSError, ValueError: There is no seal, or a damaged one.
    """
    text = (folder / NAME).read_bytes()
    try:
        said = json.loads(text)
        files = {str(name): str(value) for name, value in said["files"].items()}
        whole = said["seal"] == _sum(files) and text == (json.dumps(said, indent=2, ensure_ascii=False) + "\n").encode()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}") from error
    if not whole:
        raise ValueError("it has another checksum")
    return files


def write(folder: Path, kept: dict[str, str], before: Stats, again: str) -> None:
    """Seal the files of ``folder``, then empty its lock.

    Args:
        folder: The index's.
        kept: The former digests.
        before: What `stats_of` said when they were read.
        again: Files whose path begins so are read though their times are the same; "" for none.
    """
    now = stats_of(folder)
    same = {name for name in kept if before.get(name) == now.get(name) and not (again and name.startswith(again))}
    files = {name: kept[name] if name in same else digest(folder / name) for name in now}
    put(folder, files)


def put(folder: Path, files: dict[str, str]) -> None:
    """Write the seal of these digests, then empty the lock."""
    write_json(folder / NAME, {"seal": _sum(files), "files": files})
    empty_lock(folder)


def empty_lock(folder: Path) -> None:
    """Say that nobody is at the index and that it has a seal, or had one."""
    os.truncate(folder / LOCK, 0)


def leave_damages(folder: Path, files: dict[str, str], names: Iterable[str]) -> None:
    """Seal these damaged files as before, by the digests in ``files`` of then: verify must go on naming them."""
    now = read(folder)
    for name in names:
        now.pop(name, None)
        now |= {name: files[name]} if name in files else {}
    put(folder, now)


def find_damages(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield path and a sentence for each file that is not as it was sealed; nothing where the index is not sealed."""
    if not is_sealed(folder):
        return
    try:
        files = read(folder)
    except (OSError, ValueError) as error:
        yield NAME, f"{folder / NAME} is damaged or gone ({error}): the files were not compared with it"
        return
    there = stats_of(folder)
    for name in sorted({*files, *there}):
        if name not in files:
            yield name, f"{folder / name} is none of the index's files: nobody added it while the index was open"
        elif name not in there:
            yield name, f"{folder / name} is gone"
        elif digest(folder / name) != files[name]:
            yield name, f"{folder / name} is damaged: it is not what was written when the index was closed"


def is_sealed(folder: Path) -> bool:
    """Tell whether the index was closed by who changed it last, and nobody has it open for changes."""
    lock = folder / LOCK
    return (folder / NAME).is_file() or (lock.is_file() and not lock.stat().st_size)


def _sum(files: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _data(stream: BinaryIO, at: int, size: int) -> int:
    """Return where the next part that is no hole begins, at the earliest ``at``, rounded down to a chunk."""
    if at >= size or not hasattr(os, "SEEK_DATA"):
        return at
    try:
        found = os.lseek(stream.fileno(), at, os.SEEK_DATA)
    except OSError:  # nothing but a hole is left
        return size
    return max(at, found - found % _CHUNK)
