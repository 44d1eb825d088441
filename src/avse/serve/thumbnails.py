"""Pictures made anew for a page: decoded and encoded again, so that no byte of a file leaves the server as it is."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from avse.images import read_image

QUALITY = 85


class Thumbnail(NamedTuple):
    """A JPEG, None for those who have it, and the tag of its content."""

    tag: str
    data: bytes | None


class Thumbnails:
    """Makes each once and keeps what was used last; called from several threads."""

    def __init__(self, most_bytes: int, max_pixels: int) -> None:
        """Begin empty.

        Args:
            most_bytes: Of all that is kept.
            max_pixels: Of a picture that is decoded.
        """
        self._most, self._max_pixels, self._bytes = most_bytes, max_pixels, 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._turns: dict[str, threading.Lock] = {}  # of those that are being made

    def find(self, file: Path, size: int, known: str = "") -> Thumbnail:
        """Return the thumbnail, made now if it is not kept, once for all that ask; no data if its tag is in ``known``.

        Raises:
            OSError, ImageError: The file is gone or no picture.
        """
        tag = _tag(file, size)
        if tag in known:
            return Thumbnail(tag, None)
        with self._lock:
            turn = self._turns.setdefault(tag, threading.Lock())
        with turn:
            with self._lock:
                if (data := self._kept.get(tag)) is not None:
                    self._kept.move_to_end(tag)
            try:
                return Thumbnail(tag, data or self._make(tag, file, size))
            finally:
                with self._lock:
                    self._turns.pop(tag, None)

    def _make(self, tag: str, file: Path, size: int) -> bytes:
        picture = read_image(file, max_pixels=self._max_pixels, draft=(size, size))
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        stream = io.BytesIO()
        Image.frombytes("RGB", picture.size, picture.tobytes()).save(stream, "JPEG", quality=QUALITY)  # pixels alone
        data = stream.getvalue()
        with self._lock:
            self._bytes += len(data) - len(self._kept.get(tag, b""))
            self._kept[tag] = data
            while self._bytes > self._most and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data


def _tag(file: Path, size: int) -> str:
    """Return what tells this file's thumbnail from another one, by its name, size and time."""
    facts = file.stat()
    said = f"{os.fspath(file)}\0{facts.st_size}\0{facts.st_mtime_ns}\0{size}\0{QUALITY}"
    return hashlib.sha256(said.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def file_within(file: Path | None, folder: Path | None) -> Path | None:
    """Return the file with its links followed, if it is one and then still lies in the folder."""
    if file is None or folder is None:
        return None
    try:
        real = file.resolve(strict=True)
        return real if real.is_file() and real.is_relative_to(folder.resolve()) else None
    except (OSError, RuntimeError, ValueError):  # gone, a link to itself, a NUL in its name
        return None
