"""One webdataset shard: a tar file in which files of one base name, one after another, are one sample.

KEY.jpg (jpeg, png, webp) stands with KEY.txt, its caption, or with KEY.json, an object with ``captions`` (a list of
texts), ``caption`` or ``text``; where both stand the .txt counts. Reads headers in their order and passes over what is
not wanted by a seek. Knows neither orders nor readers, and decodes no picture.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from avse.data.entries import is_unicode, kind_of
from avse.files import MismatchError

PICTURES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "json")

_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
"""Key and suffix, cut at the first dot of the last part as the webdataset package cuts them."""
_META = re.compile(r"__[^/]*__($|/)")
_BLOCK = 8192
"""Bytes read at once: some network disks would have megabytes read for one header that is passed over."""

_File = tuple[int, str, str, tarfile.TarInfo]
"""Number of the sample in its shard, key, suffix in small letters, member."""


class Sample(NamedTuple):
    """One picture, as the bytes of its file, and its captions."""

    key: str
    image: bytes
    captions: tuple[str, ...]


class ShardError(MismatchError):
    """A shard is not what it should be."""


class Shard(NamedTuple):
    """What is known of a shard before it is read.

    Attributes:
        path: The file.
        size: Its bytes.
        mtime_ns: The time of its last change in nanoseconds.
        samples: How many of its samples can be used.
        skipped: Number in the file, key and reason of each sample that cannot, and is passed over.
        sha256: Its digest, "" where nobody computed it.
    """

    path: Path
    size: int
    mtime_ns: int
    samples: int
    skipped: tuple[tuple[int, str, str], ...] = ()
    sha256: str = ""


def count_samples(path: Path) -> Shard:
    """Count the samples of a shard by its headers and captions.

    Raises:
        ShardError: It cannot be read, is cut off, or has a file twice.
    """
    count, skipped = 0, []
    with _opened(path) as tar:
        stat = os.stat(path)
        for (number, key), group in groupby(_files(tar, path), itemgetter(0, 1)):
            files = _take(tar, group, TEXTS)
            try:
                _sample(key, files)
                count += 1
            except ValueError as error:
                skipped.append((number, key, str(error)))
    return Shard(path, stat.st_size, stat.st_mtime_ns, count, tuple(skipped))


def read_samples(shard: Shard, wanted: Sequence[int]) -> Iterator[Sample]:
    """Yield the samples at the ascending positions ``wanted`` (one or more); of the others only headers are read.

    Raises:
        ShardError: The shard changed since it was counted, or cannot be read.
    """
    bad = {number for number, _, _ in shard.skipped}
    position, turn = 0, 0
    with _opened(shard.path) as tar:
        stat = os.stat(shard.path)
        if (stat.st_size, stat.st_mtime_ns) != (shard.size, shard.mtime_ns):
            expected = f"{shard.size:,} bytes, changed last at {shard.mtime_ns} ns, as when it was opened"
            raise ShardError(shard.path, expected, f"{stat.st_size:,} bytes, changed last at {stat.st_mtime_ns} ns")
        for (number, key), group in groupby(_files(tar, shard.path), itemgetter(0, 1)):
            if number in bad:
                continue
            if position == wanted[turn]:
                yield _sample(key, _take(tar, group, PICTURES + TEXTS))
                turn += 1
                if turn == len(wanted):
                    return
            position += 1
    raise ShardError(shard.path, f"{shard.samples:,} samples", f"{position:,}")


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a shard; whatever goes wrong with it becomes a `ShardError`."""
    try:
        with open(path, "rb", buffering=_BLOCK) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
            yield tar
    except ShardError:
        raise
    except Exception as error:  # the reader of headers raises anything on damaged files
        expected = "a whole tar file that is not compressed"
        raise ShardError(path, expected, " ".join(f"{type(error).__name__}: {error}".split())[:300]) from error


def _files(tar: tarfile.TarFile, path: Path) -> Iterator[_File]:
    number, last = -1, ""
    while (member := tar.next() if tar.offset else None) is not None:  # 3.10 fails on an archive of nothing
        tar.members.clear()  # type: ignore[attr-defined] # it would keep every header
        match = _NAME.fullmatch(member.name)
        if match and member.isreg() and not _META.match(member.name):
            key, suffix = match.groups()
            number, last = number + (key != last), key
            yield number, key, suffix.lower(), member
    tar.fileobj.seek(tar.offset)  # a damaged header, or none, is taken for the end
    if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise ShardError(path, "a whole tar file", f"no header and no end mark at byte {tar.offset:,}")


def _take(tar: tarfile.TarFile, group: Iterable[_File], read: Sequence[str]) -> dict[str, bytes]:
    """Return the files of a sample by suffix, with their content where the suffix is one to ``read``."""
    files = dict[str, bytes]()
    for _, _, suffix, member in group:
        if suffix in files:
            raise ValueError(f"{member.name} twice")
        if suffix in PICTURES + TEXTS and member.size and (content := tar.extractfile(member)):
            files[suffix] = content.read() if suffix in read else b""
    return files


def _sample(key: str, files: Mapping[str, bytes]) -> Sample:
    """Make a sample of its files.

    Raises:
        ValueError: Its message says why it is none.
    """
    pictures = [files[suffix] for suffix in PICTURES if suffix in files]
    if not pictures:
        raise ValueError("no picture")
    try:
        said: Any = files["txt"].decode("utf-8-sig") if "txt" in files else json.loads(files.get("json", b"{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"unreadable caption: {error}") from error
    if isinstance(said, dict):
        said = said.get("captions", said.get("caption", said.get("text")))
    texts = [said] if isinstance(said, str) else said or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"unreadable caption: a text or a list of texts is wanted, found {kind_of(said)}")
    if not all(map(is_unicode, texts)):
        raise ValueError("unreadable caption: half a character (a lone surrogate)")
    captions = tuple(text.strip() for text in texts if text.strip())
    if not captions:
        raise ValueError("no caption")
    return Sample(key, pictures[0], captions)
