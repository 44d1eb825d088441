"""Pictures that came over the network: kept by their content below the index's folder, as entries of their own.

Such an entry says ``uploaded: true``, and no run over a local folder takes it out. Its file is named by its SHA-256:
the path that a client gave is a name and touches no disk. A path has one content; another one takes it from its former
entry. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from avse.files import sha256, write_bytes
from avse.index.contract import Payload, is_unicode
from avse.index.journal import is_picture
from avse.index.pictures import UPLOADED, microseconds, path_payload, picture_payload, upload_file

if TYPE_CHECKING:
    from avse.index.index import Index

LONGEST_PATH = 1000


class Uploads:
    """Adds and takes out by path; everything is looked up in memory, read from the index when it is first needed."""

    def __init__(self, index: Index) -> None:
        """Name the index, one of images in a folder; nothing is read yet."""
        self._index = index
        self._ids: list[str] | None = None
        self._id_of: dict[str, str] = {}  # path -> id
        self._held: dict[str, str] = {}  # content of an upload -> id

    def page(self, after: str, limit: int) -> tuple[list[tuple[str, Payload]], str | None]:
        """Return entries in the order of their ids, and the id to go on from, None at the end."""
        ids = self._read()
        at = bisect_right(ids, after)
        names, _, payloads = self._index.get(ids[at : at + limit])
        more = at + limit < len(ids)
        return list(zip(names, payloads)), ids[at + limit - 1] if more else None

    def gain(self, path: str, content: str) -> bool:
        """Give a path to the upload that has this content, and tell whether there is one; or the path has it already.

        Raises:
            StoreError: The index cannot be written.
        """
        self._read()
        if (holder := self._id_of.get(path)) is not None:
            _, _, (payload,) = self._index.get([holder])
            if payload.get("sha256") == content:
                return True
        if (name := self._held.get(content)) is None:
            return False
        self.remove(path)
        _, blocks, (payload,) = self._index.get([name])
        self._index.add_embeddings([name], blocks, [{**payload, "paths": sorted({*payload["paths"], path})}])
        self._id_of[path] = name
        return True

    def enter(self, path: str, picture: Image.Image, payload: Payload) -> bool:
        """Add a picture that `receive` kept, and tell whether its content was new.

        Args:
            path: Under which it came.
            picture: Decoded.
            payload: As `receive` gave it.

        Raises:
            StoreError: The index cannot be written; the file goes with it.
        """
        content = str(payload["sha256"])
        try:
            if self.gain(path, content):
                return False
            blocks = self._index.encoder.encode_images([picture])
            self.remove(path)
            self._index.add_embeddings([path], blocks, [payload])
            self._note(path, payload)
            return True
        finally:
            if content not in self._held:
                upload_file(self._index.path, content).unlink(missing_ok=True)

    def remove(self, path: str) -> bool:
        """Take a path from its entry, which goes with its last; tell whether there was one. Local files stay.

        Raises:
            StoreError: The index cannot be written.
        """
        ids = self._read()
        if (name := self._id_of.get(path)) is None:
            return False
        _, blocks, (payload,) = self._index.get([name])
        left = [each for each in _paths(name, payload) if each != path]
        new = name if name in left else left[0] if left else None
        del self._id_of[path]
        if new is not None:
            now = {**payload, **path_payload(new, left)}
            self._index.add_embeddings([new], blocks, [now])
            self._note(new, now)
        if new != name:
            self._index.delete([name])
            del ids[bisect_left(ids, name)]
        content = str(payload.get("sha256"))
        if new is None and self._held.get(content) == name:
            del self._held[content]
            upload_file(self._index.path, content).unlink(missing_ok=True)
        return True

    def _read(self) -> list[str]:
        if self._ids is None:
            self._ids = []
            for name, payload in (entry for page in self._index.entries() for entry in page):
                self._ids.append(name)
                for path in _paths(name, payload):
                    if path == name or path not in self._id_of:
                        self._id_of[path] = name
                if payload.get(UPLOADED):
                    self._held[str(payload.get("sha256"))] = name
            self._ids.sort()
        return self._ids

    def _note(self, name: str, payload: Payload) -> None:
        ids = self._read()
        at = bisect_left(ids, name)
        if at == len(ids) or ids[at] != name:
            ids.insert(at, name)
        self._id_of.update(dict.fromkeys(_paths(name, payload), name))
        if payload.get(UPLOADED):
            self._held[str(payload["sha256"])] = name


def receive(folder: Path, path: str, data: bytes, modified: str) -> Payload:
    """Keep the bytes of a picture in an index's folder, whole or not at all, and return the payload of its entry.

    Raises:
        ImageError: The header is no picture's.
        OSError: The disk refused.
    """
    content = hashlib.sha256(data).hexdigest()
    file = upload_file(folder, content)
    if not file.is_file():
        write_bytes(file, data)
    facts = {"modified": modified, "sha256": content, UPLOADED: True}
    return {**picture_payload(path, file), **facts}


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
    """Yield a sentence for each upload whose file is gone or holds something else."""
    for name, payload in (entry for page in entries for entry in page):
        if payload.get(UPLOADED):
            file = upload_file(folder, str(payload.get("sha256")))
            if not file.is_file():
                yield f"{name}: its picture {file} is gone"
            elif sha256(file) != payload.get("sha256"):
                yield f"{name}: its picture {file} holds something else than was uploaded"


def _paths(name: str, payload: Payload) -> Sequence[str]:
    """Return the paths of an entry; one that is no picture of a folder has its id."""
    paths = payload.get("paths")
    if isinstance(paths, list) and (payload.get(UPLOADED) or is_picture(name, payload)):
        return [str(path) for path in paths]
    return [name]
