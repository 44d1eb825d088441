"""Data sets of Hugging Face's ``datasets`` on disk: image folders with metadata, and what ``save_to_disk`` wrote.

An image folder holds pictures and ``metadata.csv``, ``.jsonl`` or ``.parquet`` (``file_name`` and text, caption or
captions), at its top or one in each folder called as a split. A saved set holds its pictures inside its tables: they
are written once into the folder beside it, NAME-pictures, as ``captions.jsonl`` and files, which is read from then on.
A column ``split`` says more than the set's own split. Nothing is fetched and no code of the folder runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from avse import files
from avse.data import captions
from avse.data.entries import ALIASES, Entry, Listing, add_captions, kind_of, picture_path, shown

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
SAVED = ("dataset_dict.json", "state.json")
_TEXTS = ("captions", "caption", "text")
_SOURCE = "source.json"
_ENDINGS = {b"\xff\xd8": ".jpg", b"\x89P": ".png", b"GI": ".gif", b"RI": ".webp", b"BM": ".bmp"}


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
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{path}: this layout needs Hugging Face's datasets: pip install 'avse[hf]'") from error
    datasets.disable_progress_bars()
    if path.name not in SAVED:
        folder = path if path.is_dir() else path.parent
        return Listing(list(_image_folder(folder, _parts(path))), mergeable=True, pictures=folder)
    target, note = path.parent.resolve().with_name(f"{path.parent.resolve().name}-pictures"), ""
    stamp = {file.relative_to(path.parent).as_posix(): _stamp(file) for file in sorted(path.parent.rglob("*.*"))}
    if not _is_export(target, stamp):
        _export(path, target, stamp)
        note = "just "
    listing = captions.read(target / "captions.jsonl", split)
    return replace(listing, notes=(f"its pictures were {note}written to {target}",), pictures=target)


def _parts(folder: Path) -> list[str]:
    """Return the folders below one that have metadata: its splits. A file has none."""
    return sorted({path.parent.name for name in METADATA for path in folder.glob(f"*/{name}")})


def _image_folder(folder: Path, parts: list[str]) -> Iterator[Entry]:
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    places = [folder / part for part in parts] or [folder]
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


def _export(path: Path, target: Path, stamp: dict[str, list[int]]) -> None:
    """Write the pictures of a saved set as files, and its rows as captions.jsonl."""
    import datasets

    if target.exists() and not (target / _SOURCE).is_file():
        raise FileExistsError(
            f"{target}, where the pictures of {path.parent} would be written, is not of avse: rename it"
        )
    try:
        saved = datasets.load_from_disk(str(path.parent))
    except Exception as error:  # datasets raises anything on damaged files
        raise ValueError(f"{path.parent}: no saved set that datasets can read: {_causes(error)}") from error
    tables = saved if isinstance(saved, dict) else {"": saved}
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        with open(temporary / "captions.jsonl", "w", encoding="utf-8", newline="\n") as lines:
            for part, table in tables.items():
                for i, (image, said) in _rows(table, f"{path.parent}: {part + ', ' if part else ''}"):
                    where = f"{path.parent}: {part + ', ' if part else ''}row {i}"
                    if (data := image["bytes"]) is None:
                        raise ValueError(
                            f"{where}: no picture inside the table but the path {image['path']!r}: save the set anew "
                            "where its pictures are"
                        )
                    name = f"pictures/{hashlib.sha256(data).hexdigest()[:32]}{_ENDINGS.get(data[:2], '.img')}"
                    if not (temporary / name).exists():
                        (temporary / name).parent.mkdir(exist_ok=True)
                        (temporary / name).write_bytes(data)
                    entry = _entry(name, where, part or None, said, i)
                    line = {**entry.record, "image": name, "captions": entry.captions, "split": entry.split}
                    lines.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        files.write_json(temporary / _SOURCE, stamp)
        files.replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
        raise ValueError(f"{where}: one column of {', '.join(_TEXTS)} is wanted, found {texts or sorted(said)}")
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


def _stamp(file: Path) -> list[int]:
    return [file.stat().st_size, file.stat().st_mtime_ns]


def _is_export(target: Path, stamp: dict[str, list[int]]) -> bool:
    try:
        return json.loads((target / _SOURCE).read_text("utf-8")) == stamp and (target / "captions.jsonl").is_file()
    except (OSError, ValueError):
        return False


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
