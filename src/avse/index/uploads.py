"""Pictures that came over the network: kept by their content below the index's folder, as entries of their own.

Such an entry says ``uploaded: true``, and no run over a local folder takes it out. Its file is named by its SHA-256:
the path that a client gave is a name and touches no disk. A path has one content; another one takes it from its former
entry. Knows no HTTP.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from avse.files import sha256, write_bytes
from avse.index.contract import Payload, is_unicode
from avse.index.journal import is_picture
from avse.index.pictures import UPLOADED, is_upload, microseconds, path_payload, picture_payload, upload_file

if TYPE_CHECKING:
    from avse.index.index import Index

LONGEST_PATH = 1000


class _Known(NamedTuple):
    """What the index holds."""

    ids: list[str]  # sorted
    id_of: dict[str, str]  # path -> id
    held: dict[str, str]  # content of an upload -> id


class Uploads:
    """Adds and takes out by path; looks up in memory what it reads once, but lists what others change: a server."""

    def __init__(self, index: Index) -> None:
        """Name the index; nothing is read yet."""
        self._index = index
        self._known: _Known | None = None

    def page(self, after: str, limit: int) -> tuple[list[tuple[str, Payload]], str | None]:
        """Return entries in the order of their ids (a server's in its own), and the id to go on from or None."""
        if self._index.store == "server":
            pages = self._index.entries(after or None)
            found = list(islice((entry for page in pages for entry in page), limit + 1))
            return found[:limit], found[limit - 1][0] if len(found) > limit else None
        ids = self._read().ids
        at = bisect_right(ids, after)
        names, _, payloads = self._index.get(ids[at : at + limit])
        more = at + limit < len(ids)
        return list(zip(names, payloads)), ids[at + limit - 1] if more else None

    def gain(self, path: str, content: str) -> bool:
        """Give a path to the upload that has this content, and tell whether there is one; or the path has it already.

        Raises:
            StoreError: The index cannot be written.
        """
        with self._changing() as known:
            if (holder := known.id_of.get(path)) is not None:
                _, _, (payload,) = self._index.get([holder])
                if payload.get("sha256") == content:
                    return True
            if (name := known.held.get(content)) is None:
                return False
            self.remove(path)
            _, blocks, (payload,) = self._index.get([name])
            self._index.add_embeddings([name], blocks, [{**payload, "paths": sorted({*payload["paths"], path})}])
            known.id_of[path] = name
            return True

    def enter(self, path: str, picture: Image.Image, data: bytes, content: str, modified: str) -> bool:
        """Add a picture with its file, and tell whether its content was new.

        Args:
            path: Under which it came.
            picture: Decoded.
            data: Its bytes.
            content: Their SHA-256, which the caller has checked.
            modified: As `check_path` wants it.

        Raises:
            ImageError: The header is no picture's.
            OSError: The disk refused, or (`StoreError`) the index cannot be written; no file is left then.
        """
        if self.gain(path, content):
            return False
        blocks = self._index.encoder.encode_images([picture])
        file = upload_file(self._index.path, content)
        write_bytes(file, data)
        try:
            payload = {**picture_payload(path, file), "modified": modified, "sha256": content, UPLOADED: True}
            with self._changing() as known:
                self.remove(path)
                self._index.add_embeddings([path], blocks, [payload])
                _note(known, path, payload)
        finally:
            if content not in self._read().held:
                file.unlink(missing_ok=True)
        return True

    def remove(self, path: str) -> bool:
        """Take a path from its entry, which goes with its last; tell whether there was one. Local files stay.

        Raises:
            StoreError: The index cannot be written.
        """
        with self._changing() as known:
            if (name := known.id_of.get(path)) is None:
                return False
            _, blocks, (payload,) = self._index.get([name])
            left = [each for each in _paths(name, payload) if each != path]
            new = name if name in left else left[0] if left else None
            del known.id_of[path]
            if new is not None:
                now = {**payload, **path_payload(new, left)}
                self._index.add_embeddings([new], blocks, [now])
                _note(known, new, now)
            if new != name:
                self._index.delete([name])
                del known.ids[bisect_left(known.ids, name)]
            content = str(payload.get("sha256"))
            if new is None and known.held.get(content) == name:
                del known.held[content]
                upload_file(self._index.path, content).unlink(missing_ok=True)
            return True

    @contextmanager
    def _changing(self) -> Iterator[_Known]:
        """Give what is known, to be changed with the index; where one of them fails, it is read anew."""
        try:
            yield self._read()
        except BaseException:
            self._known = None
            raise

    def _read(self) -> _Known:
        if self._known is None:
            known = _Known([], {}, {})
            for name, payload in (entry for page in self._index.entries() for entry in page):
                known.ids.append(name)
                for path in _paths(name, payload):
                    if path == name or path not in known.id_of:
                        known.id_of[path] = name
                if is_upload(payload):
                    known.held[payload["sha256"]] = name
            known.ids.sort()
            self._known = known
        return self._known


def _note(known: _Known, name: str, payload: Payload) -> None:
    at = bisect_left(known.ids, name)
    if at == len(known.ids) or known.ids[at] != name:
        known.ids.insert(at, name)
    known.id_of.update(dict.fromkeys(_paths(name, payload), name))
    if is_upload(payload):
        known.held[payload["sha256"]] = name


def check_path(path: str, modified: str) -> None:
    """Refuse what is no relative path, or no time.

    Raises:
        ValueError: It is absolute, climbs up, holds control characters, is empty or too long; or the time is another
            than ``iso_time`` writes.
    """
    parts = path.split("/")
    if not 0 < len(path) <= LONGEST_PATH or not is_unicode(path) or not path.isprintable():
        raise ValueError(f"a path has 1 to {LONGEST_PATH} printable characters")
    if "\\" in path or ":" in parts[0] or not all(part not in ("", ".", "..") for part in parts):
        raise ValueError("a path is relative, with / between its parts and without . and ..")
    if microseconds(modified) is None:
        raise ValueError("modified: a time such as 2019-06-08T13:20:00.000001+00:00 is wanted")


def check_uploads(folder: Path, entries: Iterator[list[tuple[str, Payload]]]) -> Iterator[str]:
    """Yield a sentence for each upload whose file is gone or holds something else, and each file without an entry."""
    wanted: set[str] = set()
    for name, payload in (entry for page in entries for entry in page):
        if is_upload(payload):
            wanted.add(payload["sha256"])
            file = upload_file(folder, payload["sha256"])
            if not file.is_file():
                yield f"{name}: its picture {file} is gone"
            elif sha256(file) != payload["sha256"]:
                yield f"{name}: its picture {file} holds something else than was uploaded"
    for file in (folder / "uploads").glob("*/*"):
        if file.name not in wanted:
            yield f"{file}: no entry has this picture; delete it, unless a server adds pictures to this index just now"


def _paths(name: str, payload: Payload) -> Sequence[str]:
    """Return the paths of an entry; one that is no picture of a folder has its id."""
    paths = payload.get("paths")
    if isinstance(paths, list) and (is_upload(payload) or is_picture(name, payload)):
        return [str(path) for path in paths]
    return [name]
