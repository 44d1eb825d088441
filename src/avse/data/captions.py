"""Data anyone can bring: a folder of pictures and ``captions.jsonl`` or ``captions.csv``.

``captions.jsonl`` has one object a line, ``{"image": "a.jpg", "captions": ["..."], "split": "train"}``; further fields
are kept as the image's record. ``captions.csv`` has the columns image, caption and perhaps split, one caption a row.
Pictures lie beside the file or in ``images/``; their names may be written with backslashes or in another Unicode form
than on the disk. A picture listed in two splits stays in the one that measures. What the file says wrongly is an error
that names file and line; a picture or caption that cannot be used is a listed skip. Looks at no picture itself.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from avse.data.dataset import SPLITS
from avse.data.entries import ALIASES, Entry, Listing, add_captions, did_you_mean, json_lines, picture_path, read_text

CAPTION_FILES = ("captions.jsonl", "captions.csv")


def find(folder: Path) -> list[Path]:
    """Return the caption files in a folder."""
    return [folder / name for name in CAPTION_FILES if (folder / name).is_file()]


def accepts(path: Path) -> bool:
    """Tell whether a file is one of captions by its ending."""
    return path.suffix.lower() in (".jsonl", ".csv")


def read(path: Path, split: str | None) -> Listing:
    """Return every line of a caption file; lines of one image are not merged yet.

    Raises:
        ValueError: The file says something wrong; file and line are named.
    """
    entries = list(_read_jsonl(path) if path.suffix.lower() == ".jsonl" else _read_csv(path))
    if not entries:
        raise ValueError(f"{path}: no images in it")
    return Listing(entries, mergeable=True)


def way_out(split: str, there: Mapping[str, str], assigned: bool) -> str:
    """Say what can be done about a split that no line names."""
    if assigned and split in SPLITS:
        return (
            f". No line names a split, so they were assigned by a hash: {len(SPLITS)} pictures are needed, or name one"
        )
    close = [name for name in there if name.lower() in (split, *ALIASES.get(split, ()))]
    if split in SPLITS and close:
        return f': write "split": "{split}" in place of "{close[0]}"'
    if split in SPLITS:
        return f': add lines with "split": "{split}", or name no split at all, and pictures are assigned by a hash'
    return did_you_mean(split, there)


def _read_jsonl(path: Path) -> Iterator[Entry]:
    for number, said in json_lines(path):
        if not isinstance(said, dict) or not {"image", "captions"} <= said.keys():
            found = f"the keys {sorted(said)!s:.200}" if isinstance(said, dict) else f"a {type(said).__name__}"
            raise ValueError(f'{path}:{number}: an object with "image" and "captions" is wanted, found {found}')
        image, captions, split = said.pop("image"), said.pop("captions"), said.pop("split", None)
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f'{path}:{number}: "captions" must be a list of texts, found {json.dumps(captions)[:80]}')
        if not isinstance(split, str | None) or split == "":
            raise ValueError(f'{path}:{number}: "split" must be a name, found {json.dumps(split)[:80]}')
        yield _entry(path, number, image, split, captions, said)


def _read_csv(path: Path) -> Iterator[Entry]:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        if not {"image", "caption"} <= set(header) or len(set(header)) != len(header):
            found = f"{header!s:.200}"
            raise ValueError(f"{path}:1: the columns image, caption and perhaps split are wanted, found {found}")
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


def _entry(path: Path, line: int, image: object, split: str | None, captions: list[str], rest: dict[str, Any]) -> Entry:
    where = f"{path}:{line}"
    entry = Entry(picture_path(image, where), where, split, record=rest)
    if split == "all":
        raise ValueError(f'{where}: a split cannot be called "all", which stands for all splits')
    return add_captions(entry, captions, f"line {line}")
