"""Image folders of Hugging Face's ``datasets``: pictures with ``metadata.csv``, ``.jsonl`` or ``.parquet``.

The metadata (``file_name`` and text, caption or captions) lies at the folder's top, or one file in each folder called
as a split. A column ``split`` says more than the folder's name. Nothing is fetched and no code of the folder runs. What
``save_to_disk`` wrote holds its pictures inside its tables and is refused with the way out.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avse.data.entries import ALIASES, Entry, Listing, add_captions, fields, json_lines, kind_of, picture_path, shown
from avse.extras import needs

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SAVED = ("dataset_dict.json", "state.json")
_TEXTS = ("captions", "caption", "text")


def find(folder: Path) -> list[Path]:
    """Return what marks this layout in a folder: its file, or the folder itself where each split's has metadata."""
    here = [folder / name for name in (*SAVED, *METADATA) if (folder / name).is_file()]
    return here[:1] or ([folder] if _parts(folder) else [])


def accepts(path: Path) -> bool:
    """Tell whether a file is one of this layout by its name."""
    return path.name in (*SAVED, *METADATA)


def read(path: Path, split: str | None) -> Listing:
    """Return all images of the set, one entry a row.

    Raises:
        ImportError: ``datasets`` is not installed; the message has its pip line.
        ValueError: The set says something wrong; the row is named.
    """
    if path.name in SAVED:
        raise ValueError(
            f"{path.parent}: a set that save_to_disk wrote holds its pictures inside its tables: write them into a "
            "folder once, row['image'].save(...), with metadata.csv (file_name, text, split) beside them"
        )
    with needs("hf", f"{path}: this layout of Hugging Face's datasets"):
        import datasets
    datasets.disable_progress_bars()
    folder = path if path.is_dir() else path.parent
    return Listing(list(_image_folder(folder, _parts(path))), mergeable=True, pictures=folder)


def _parts(folder: Path) -> list[str]:
    """Return the folders below one that have metadata: its splits. A file has none."""
    return sorted({path.parent.name for name in METADATA for path in folder.glob(f"*/{name}")})


def _image_folder(folder: Path, parts: list[str]) -> Iterator[Entry]:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    places = [folder / part for part in parts] or [folder]
    for table in [one / "metadata.jsonl" for one in places if (one / "metadata.jsonl").is_file()]:
        for number, said in json_lines(table):  # on what is no JSON pyarrow 26 may end the process
            fields(said, {}, f"{table}:{number}")
    with tempfile.TemporaryDirectory(prefix="avse-") as cache:
        try:
            patterns = {f"part{k}": [f"{_literal(place)}/**"] for k, place in enumerate(places)}
            builder = ImageFolder(cache_dir=cache, data_files=patterns, drop_labels=True)
            builder.download_and_prepare()
            tables = builder.as_dataset()
        except Exception as error:  # datasets raises anything on damaged files
            raise ValueError(f"{folder}: no image folder that datasets can read: {_causes(error)}") from error
        real = folder.resolve()
        for k in range(len(places)):
            place = f"{folder}: {parts[k] + ', ' if parts else ''}"
            for i, (image, said) in _rows(tables[f"part{k}"], place):
                where = f"{place}row {i}"
                path = Path(os.path.normpath(image["path"] or ""))
                if image["bytes"] is not None or not path.is_relative_to(real):
                    raise ValueError(
                        f"{where}: the picture {image['path']!r} leaves the folder: unpack or copy it there"
                    )
                yield _entry(path.relative_to(real).as_posix(), where, parts[k] if parts else None, said, i)


def _rows(table: Any, where: str) -> Iterator[tuple[int, tuple[dict[str, Any], dict[str, Any]]]]:
    """Yield the number of each row, its picture (bytes and path) and the rest of it."""
    import datasets

    pictures = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if len(pictures) != 1:
        raise ValueError(
            f"{where}one column of pictures is wanted, found {pictures or 'none'} among {list(table.features)}"
        )
    for i, row in enumerate(table.cast_column(pictures[0], datasets.Image(decode=False))):
        image = row.pop(pictures[0])
        if image is None:
            raise ValueError(f"{where}row {i}: no picture in it")
        yield i, (image, row)


def _entry(image: str, where: str, part: str | None, said: dict[str, Any], row: int) -> Entry:
    texts = [name for name in _TEXTS if name in said]
    if len(texts) != 1:
        raise ValueError(f"{where}: one column of {', '.join(_TEXTS)} is wanted, found {texts or sorted(said)!s:.300}")
    value = said.pop(texts[0])
    own = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str | None) for text in own):
        raise ValueError(f"{where}: {texts[0]!r} must be a text or a list of texts, found {shown(value)}")
    split = said.pop("split", part)
    if split is not None and (not isinstance(split, str) or split in ("", "all")):
        raise ValueError(f"{where}: 'split' must be a name other than all, found {kind_of(split)} {shown(split)}")
    entry = Entry(picture_path(image, where), where, split and _split(split), record=said)
    return add_captions(entry, [text or "" for text in own], f"row {row}")


def _split(name: str) -> str:
    """Return our name of a split: validation and dev are val."""
    return "val" if name.lower() in ALIASES["val"] else name


def _literal(folder: Path) -> str:
    """Return a path in which no character stands for others in a pattern."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in folder.resolve().as_posix())


def _causes(error: BaseException) -> str:
    """Say an error and what caused it in one line."""
    said = [f"{type(error).__name__} {error}"]
    while error.__cause__ is not None:
        error = error.__cause__
        said.append(f"{type(error).__name__} {error}")
    return " ".join("; ".join(said).split())[:500]
