"""Data anyone can bring: a folder of pictures and ``captions.jsonl`` or ``captions.csv``.

``captions.jsonl`` has one object a line, ``{"image": "a.jpg", "captions": ["..."], "split": "train"}``; further fields
are kept as the image's record. ``captions.csv`` has the columns image, caption and perhaps split, one caption a row.
Pictures lie beside the file or in ``images/``; their names may be written with backslashes or in another Unicode form
than on the disk. A picture listed in two splits stays in the one that measures. What the file says wrongly is an error
that names file and line; a picture or caption that cannot be used is a listed skip.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from avse.data.dataset import SPLITS, PairDataset, Skip, split_by_hash
from avse.images import ImageError, check_image

CAPTION_FILES = ("captions.jsonl", "captions.csv")
_ALIASES = {"val": ("validation", "valid", "dev", "devel", "development"), "train": ("training",), "test": ("testing",)}


@dataclass
class _Entry:
    """What the caption file says of one image; ``line`` is where it first stands."""

    image: str
    line: int
    split: str | None
    captions: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)
    dropped: str = ""


def load_dataset(
    name_or_path: str | Path, *, root: str | Path | None = None, split: str = "test", check_images: bool = True
) -> PairDataset:
    """Return one split of a data set.

    Where no line names a split, images are split 80 / 10 / 10 % by the SHA-256 of their id, and ``summary()`` says so;
    three images or more leave no split empty.

    Args:
        name_or_path: A folder that holds captions.jsonl or captions.csv, or that file itself.
        root: The folder of the pictures; by default the caption file's own, or ``images`` in it, whichever has more.
        split: "train", "val", "test", or what else the file names; "all" for all of them.
        check_images: Read every picture's header; unreadable pictures are skipped. A picture that is cut off further
            on is found only when it is decoded.

    Raises:
        FileNotFoundError: No such folder or caption file.
        ValueError: The file says something wrong (file and line are named), the split is none of its splits, or
            nothing usable is left in it.
    """
    path = _caption_file(Path(name_or_path))
    lines = list(_read_jsonl(path) if path.suffix.lower() == ".jsonl" else _read_csv(path))
    folder = _find_pictures(path, lines, root)
    entries = _merge(path, lines)
    notes = _fill_splits(path, entries)
    chosen = _choose(path, entries, split, assigned=bool(notes))
    kept: list[_Entry] = []
    skipped: list[Skip] = []
    for entry in chosen:
        skipped += entry.skipped
        reason = entry.dropped or _unusable(path, folder, entry, check_images)
        if reason:
            skipped.append(Skip(entry.image, reason))
        else:
            kept.append(entry)
    if not kept:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(skip.kind for skip in skipped).items())
        raise ValueError(
            f"{path}: nothing usable in split {split!r}: {len(chosen):,} images listed, pictures looked for in "
            f"{folder}; skipped: {kinds or 'none'}"
        )
    return PairDataset(
        name=path.resolve().parent.name,
        split=split,
        root=folder,
        image_ids=tuple(entry.image for entry in kept),
        image_paths=tuple(folder / entry.image for entry in kept),
        captions=tuple(caption for entry in kept for caption in entry.captions),
        text_to_image=np.repeat(np.arange(len(kept), dtype=np.int64), [len(entry.captions) for entry in kept]),
        skipped=tuple(skipped),
        records=tuple({"split": entry.split, **entry.record} for entry in kept),
        notes=notes,
    )


def _caption_file(path: Path) -> Path:
    if path.is_file():
        if path.suffix.lower() not in (".jsonl", ".csv"):
            raise ValueError(f"{path}: a caption file ends in .jsonl or .csv")
        return path
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such folder or file; a data set is a folder with {' or '.join(CAPTION_FILES)}"
        )
    found = [path / name for name in CAPTION_FILES if (path / name).is_file()]
    if not found:
        raise FileNotFoundError(f"{path} holds neither {' nor '.join(CAPTION_FILES)}")
    if len(found) > 1:
        raise ValueError(f"{path} holds {' and '.join(CAPTION_FILES)}: name the one to read")
    return found[0]


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}): save the file as UTF-8"
        ) from error


def _read_jsonl(path: Path) -> Iterator[_Entry]:
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            said = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not JSON ({error})") from error
        if not isinstance(said, dict) or not {"image", "captions"} <= said.keys():
            found = f"the keys {sorted(said)}" if isinstance(said, dict) else f"a {type(said).__name__}"
            raise ValueError(f'{path}:{number}: an object with "image" and "captions" is wanted, found {found}')
        image, captions, split = said.pop("image"), said.pop("captions"), said.pop("split", None)
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f'{path}:{number}: "captions" must be a list of texts, found {json.dumps(captions)[:80]}')
        if not isinstance(split, str | None) or split == "":
            raise ValueError(f'{path}:{number}: "split" must be a name, found {json.dumps(split)[:80]}')
        yield _entry(path, number, image, split, captions, said)


def _read_csv(path: Path) -> Iterator[_Entry]:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if not {"image", "caption"} <= set(header) or len(set(header)) != len(header):
            raise ValueError(f"{path}:1: the columns image, caption and perhaps split are wanted, found {header}")
        for row in reader:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(f"{path}:{reader.line_num}: {len(row)} fields where the header has {len(header)}")
            said: dict[str, Any] = dict(zip(header, row))
            image, caption, split = said.pop("image"), said.pop("caption"), said.pop("split", "").strip() or None
            yield _entry(path, reader.line_num, image, split, [caption], said)
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not CSV ({error})") from error


def _entry(
    path: Path, line: int, image: object, split: str | None, captions: list[str], rest: dict[str, Any]
) -> _Entry:
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        raise ValueError(f"{path}:{line}: the image must be a path, found {image!r}")
    pure, windows = PurePosixPath(image.strip()), PureWindowsPath(image.strip())
    if pure.is_absolute() or windows.anchor or ".." in (*pure.parts, *windows.parts):
        raise ValueError(f"{path}:{line}: the image {image!r} leaves the folder: give a path relative to it")
    if split == "all":
        raise ValueError(f'{path}:{line}: a split cannot be called "all", which stands for all splits')
    entry = _Entry(pure.as_posix(), line, split, record=rest)
    for caption in captions:
        if caption.strip():
            entry.captions.append(caption.strip())
        else:
            entry.skipped.append(Skip(entry.image, f"empty caption: line {line}"))
    return entry


def _merge(path: Path, entries: Iterable[_Entry]) -> list[_Entry]:
    merged: dict[str, _Entry] = {}
    dropped: list[_Entry] = []
    for entry in entries:
        first = merged.setdefault(entry.image, entry)
        if first is entry:
            continue
        if first.split != entry.split:
            kept, other = sorted((first, entry), key=_rank, reverse=True)
            if _rank(kept) == _rank(other):
                raise ValueError(
                    f"{path}:{entry.line}: {entry.image!r} is in split {entry.split!r} here and in {first.split!r} in "
                    f"line {first.line}: one image belongs to one split, take one line out"
                )
            other.dropped = f"in two splits: kept in {kept.split!r} (line {kept.line}), not in {other.split!r}"
            merged[entry.image] = kept
            dropped.append(other)
            continue
        first.captions += entry.captions
        first.skipped += entry.skipped
        first.record = {**entry.record, **first.record}
    if not merged:
        raise ValueError(f"{path}: no images in it")
    return [*merged.values(), *dropped]


def _rank(entry: _Entry) -> int:
    """A picture in two splits is kept out of training, and out of selection where it measures."""
    return {"train": 0, "val": 1}.get(entry.split or "", 2)


def _find_pictures(path: Path, entries: list[_Entry], root: str | Path | None) -> Path:
    """Return the folder that holds most of the pictures, and call each entry's image by its name there."""
    if root is not None and not Path(root).is_dir():
        raise FileNotFoundError(f"{root}: no such folder of pictures")
    folders = [path.parent, path.parent / "images"] if root is None else [Path(root)]
    names = dict.fromkeys(entry.image for entry in entries)
    found = [{name: there for name in names if (there := _on_disk(folder, name))} for folder in folders]
    best = max(range(len(folders)), key=lambda i: len(found[i]))
    for entry in entries:
        entry.image = found[best].get(entry.image, entry.image)
    return folders[best]


def _on_disk(folder: Path, name: str) -> str:
    """Return the name under which a picture is there: as written, with forward slashes, composed or decomposed."""
    for slashes in dict.fromkeys((name, name.replace("\\", "/"))):
        for form in dict.fromkeys(
            (slashes, unicodedata.normalize("NFC", slashes), unicodedata.normalize("NFD", slashes))
        ):
            if (folder / form).is_file():
                return PurePosixPath(form).as_posix()
    return ""


def _fill_splits(path: Path, entries: list[_Entry]) -> tuple[str, ...]:
    without = [entry for entry in entries if entry.split is None]
    if not without:
        return ()
    if len(without) < len(entries):
        raise ValueError(
            f"{path}:{without[0].line}: {without[0].image!r} names no split, as {len(without):,} of {len(entries):,} "
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


def _choose(path: Path, entries: list[_Entry], split: str, assigned: bool) -> list[_Entry]:
    counts = Counter(entry.split for entry in entries)
    if split != "all" and split not in counts:
        there = ", ".join(f"{name} ({count:,} images)" for name, count in counts.most_common())
        raise ValueError(f"{path}: no split {split!r}; it has {there}, or all{_way_out(split, counts, assigned)}")
    return [entry for entry in entries if split in ("all", entry.split)]


def _way_out(split: str, there: Iterable[str | None], assigned: bool) -> str:
    """Say what can be done about a split that is not there."""
    if assigned and split in SPLITS:
        return (
            f". No line names a split, so they were assigned by a hash: {len(SPLITS)} pictures are needed, or name one"
        )
    names = [name for name in there if name]
    close = [name for name in names if name.lower() in (split, *_ALIASES.get(split, ()))]
    if split in SPLITS and close:
        return f': write "split": "{split}" in place of "{close[0]}"'
    if split in SPLITS:
        return f': add lines with "split": "{split}", or name no split at all, and pictures are assigned by a hash'
    close = [name for name in names if split.lower() in (name, *_ALIASES.get(name, ()))]
    close += difflib.get_close_matches(split, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _unusable(path: Path, folder: Path, entry: _Entry, check_images: bool) -> str:
    picture = folder / entry.image
    if not picture.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{path}:{entry.line}: {entry.image!r} is a link that leaves {folder}: copy the picture there")
    if not picture.exists():
        return "missing: no such file"
    if not entry.captions:
        return "no caption"
    try:
        if check_images:
            check_image(picture)
    except ImageError as error:
        return error.reason
    return ""
