"""What a file says of one image, whatever its layout: reading the file, what is refused, what is skipped.

Knows no layout and looks at no picture.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from avse.data.dataset import SPLITS, Skip, split_by_hash

_PLAIN = re.compile(r"([\w-][\w.-]*/)*[\w-][\w.-]*")
"""Paths in which nothing needs to be looked at: no part of them is special anywhere."""
ALIASES = {"val": ("validation", "valid", "dev", "devel", "development"), "train": ("training",), "test": ("testing",)}


@dataclass
class Entry:
    """One image as a file describes it.

    Attributes:
        image: Its path relative to the folder of pictures, with forward slashes.
        where: The file and the line, or the place in the file, that says so: for messages.
        split: The split's name, None where none is named.
        captions: Its captions; an empty one is not among them but in ``skipped``.
        record: Everything else that is said of it.
        skipped: What was left out of it.
        dropped: Why the whole image is left out, where it is.
        others: Further paths at which the picture may lie; the first one on the disk becomes ``image``.
    """

    image: str
    where: str
    split: str | None
    captions: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)
    dropped: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listing:
    """What a layout holds: the images of the splits that were asked for, and notes on what was decided.

    Attributes:
        entries: The images. Of a layout with a file a split, only those of the split that was asked for.
        notes: For `PairDataset.summary`.
        mergeable: Lines of one image belong together; otherwise an image named twice is an error.
        pictures: The folder of the pictures, where the layout itself says which it is.
    """

    entries: list[Entry]
    notes: tuple[str, ...] = ()
    mergeable: bool = False
    pictures: Path | None = None


def add_captions(entry: Entry, captions: Iterable[str], where: str, ids: Sequence[int] | None = None) -> Entry:
    """Add captions to an entry, stripped; an empty one becomes a skip that says ``where``.

    Args:
        entry: Gets the captions.
        captions: The texts.
        where: Where they stand, such as "line 3".
        ids: Their ids, kept as the record's ``caption_ids`` for the captions that are kept.
    """
    for i, caption in enumerate(captions):
        if text := caption.strip():
            if not is_unicode(text):
                raise ValueError(f"{entry.where}: half a character (a lone surrogate) in the caption {text!a:.80}")
            entry.captions.append(text)
            if ids is not None:
                entry.record.setdefault("caption_ids", []).append(ids[i])
        else:
            entry.skipped.append(Skip(entry.image, f"empty caption: {where}"))
    return entry


def is_unicode(text: str) -> bool:
    """Tell whether a text can be written: JSON can hold half of a surrogate pair, which no file can."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def read_text(path: Path) -> str:
    """Return a file as text; a byte order mark is no part of it.

    Raises:
        ValueError: Not UTF-8; the line is named.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}): save the file as UTF-8"
        ) from error


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file without their ends; blank lines at its end are none.

    Raises:
        ValueError: Not UTF-8; the line is named.
    """
    lines = [line.removesuffix("\r") for line in read_text(path).split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number (from 1) and the value of each line that is not blank.

    Raises:
        ValueError: Not UTF-8 or not JSON; the line is named.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                said = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{number}: not JSON ({error})") from error
            yield number, said


def read_json(path: Path, wanted: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Return the object that a file holds.

    Args:
        path: The file.
        wanted: Keys that must be there, and the type of each.

    Raises:
        ValueError: Not UTF-8, not JSON, no object, or a key missing or of another type.
    """
    text = read_text(path)
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}): the file is cut off or damaged, fetch it anew") from error
    if not isinstance(said, dict):
        raise ValueError(f"{path}: an object is wanted, found {kind_of(said)}")
    return fields(said, wanted or {}, str(path))


def fields(said: Any, wanted: Mapping[str, type], where: str) -> dict[str, Any]:
    """Return ``said``, an object that has the keys ``wanted``, each of its type (a whole number is no truth value).

    Raises:
        ValueError: It is none, or a key is missing or of another type; the message opens with ``where``.
    """
    if not isinstance(said, dict):
        raise ValueError(f"{where}: an object is wanted, found {kind_of(said)}")
    for key, kind in wanted.items():
        if key not in said:
            raise ValueError(
                f"{where}: no {key!r}, which must be there ({_KINDS[kind]}); found the keys {sorted(said)!s:.300}"
            )
        if type(said[key]) is not kind:
            raise ValueError(f"{where}: {key!r} must be {_KINDS[kind]}, found {shown(said[key])}")
    return said


_KINDS = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}


def kind_of(said: Any) -> str:
    """Name the type of a JSON value as it is called in messages."""
    return f"a {type(said).__name__}"


def shown(said: Any) -> str:
    """Return a value as a message shows it: as JSON, cut."""
    text = json.dumps(said, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:79] + "…"


def picture_path(image: object, where: str) -> str:
    """Return a picture's path relative to its folder, with the needless parts taken out.

    Raises:
        ValueError: No path, or one that leaves the folder; the message opens with ``where``.
    """
    if isinstance(image, str) and _PLAIN.fullmatch(image):
        return image
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        raise ValueError(f"{where}: the image must be a path, found {shown(image)}")
    pure, windows = PurePosixPath(image.strip()), PureWindowsPath(image.strip())
    if pure.is_absolute() or windows.anchor or ".." in (*pure.parts, *windows.parts):
        raise ValueError(f"{where}: the image {shown(image)} leaves the folder: give a path relative to it")
    return pure.as_posix()


def merge(path: Path, entries: Iterable[Entry]) -> list[Entry]:
    """Return one entry an image; one that stands in two splits is dropped from the one that matters less.

    Raises:
        ValueError: An image in two splits of which neither is for training or selection.
    """
    merged: dict[str, Entry] = {}
    dropped: list[Entry] = []
    for entry in entries:
        first = merged.setdefault(entry.image, entry)
        if first is entry:
            continue
        if first.split != entry.split:
            kept, other = sorted((first, entry), key=rank, reverse=True)
            if rank(kept) == rank(other):
                raise ValueError(
                    f"{entry.where}: {entry.image!r} is in split {entry.split!r} here and in {first.split!r} in "
                    f"{_short(first)}: one image belongs to one split, take one line out"
                )
            other.dropped = f"in two splits: kept in {kept.split!r} ({_short(kept)}), not in {other.split!r}"
            merged[entry.image] = kept
            dropped.append(other)
            continue
        first.captions += entry.captions
        first.skipped += entry.skipped
        first.record = {**entry.record, **first.record}
    return [*merged.values(), *dropped]


def refuse_twice(entries: Iterable[Entry]) -> None:
    """Raise where a split has one picture twice.

    Raises:
        ValueError: Both places are named.
    """
    first: dict[tuple[str, str | None], Entry] = {}
    for entry in entries:
        other = first.setdefault((entry.image, entry.split), entry)
        if other is not entry:
            raise ValueError(
                f"{entry.where}: {entry.image!r} stands twice in {entry.split!r}, first in {other.where}: "
                "take one of them out"
            )


def rank(entry: Entry) -> int:
    """A picture in two splits is kept out of training, and out of selection where it measures."""
    return {"train": 0, "val": 1}.get(entry.split or "", 2)


def _short(entry: Entry) -> str:
    """Say the place of an entry without the file's name where that is a line of it."""
    place = entry.where.rpartition(":")[2]
    return f"line {place}" if place.isdigit() else entry.where


def fill_splits(path: Path, entries: list[Entry]) -> tuple[str, ...]:
    """Assign splits by the hash of the image's id where none is named, and return a note that says so.

    Raises:
        ValueError: Some images name a split and some do not.
    """
    without = [entry for entry in entries if entry.split is None]
    if not without:
        return ()
    if len(without) < len(entries):
        raise ValueError(
            f"{without[0].where}: {without[0].image!r:.200} names no split, as {len(without):,} of {len(entries):,} "
            "images: name one for all of them or for none"
        )
    for entry in entries:
        entry.split = split_by_hash(entry.image)
    counts = Counter(entry.split for entry in entries)
    if len(entries) >= len(SPLITS) > len(counts):  # a tiny set: the largest split gives what an empty one lacks
        for empty in [split for split in SPLITS if not counts[split]]:
            counts.subtract([max(SPLITS, key=lambda split: counts[split])])
            counts[empty] += 1
        order = sorted(entries, key=lambda entry: hashlib.sha256(entry.image.encode()).digest())
        for entry, share in zip(order, (split for split in SPLITS for _ in range(counts[split]))):
            entry.split = share
    shares = ", ".join(f"{split} {counts[split]:,}" for split in SPLITS)
    return (f"no split is named: assigned by the SHA-256 of the image's id ({shares})",)


def no_split(path: Path, split: str, there: Mapping[str, str], way_out: str = "") -> ValueError:
    """Return the error for a split that is not there.

    Args:
        path: The file or folder.
        split: What was asked for.
        there: The splits there are, with what is said of each in brackets.
        way_out: What can be done, where that is more than a name nearly right.
    """
    listed = ", ".join(f"{name} ({said})" if said else name for name, said in there.items())
    return ValueError(f"{path}: no split {split!r}; it has {listed}, or all{way_out or did_you_mean(split, there)}")


def did_you_mean(split: str, there: Iterable[str]) -> str:
    """Suggest the split of another name that is probably meant."""
    names = list(there)
    close = [name for name in names if split.lower() in (name, *ALIASES.get(name, ()))]
    close += difflib.get_close_matches(split, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
