"""Karpathy's splits: ``dataset_flickr30k.json``, ``dataset_coco.json`` and any ``dataset_*.json`` of that schema.

``images`` is a list of objects with ``filename``, perhaps ``filepath`` (the folder), ``split``, ``sentences`` (each
with ``raw``) and perhaps ``sentids``, ``cocoid`` and ``imgid``. ``restval`` is merged into training, as everyone does
who reports figures on MS-COCO. Every caption is kept: some images of MS-COCO have six or seven, of which the field's
protocols take the first five (`PairDataset.first_captions`). Looks at no picture itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from avse.data.entries import Entry, Listing, add_captions, fields, picture_path, read_json, shown

_OTHERS = ("dataset_dict.json", "dataset_info.json", "dataset_infos.json")  # of Hugging Face's datasets


def find(folder: Path) -> list[Path]:
    """Return the files of this layout in a folder and in its ``annotations``."""
    found = [path for place in (folder, folder / "annotations") for path in sorted(place.glob("dataset_*.json"))]
    return [path for path in found if accepts(path)]


def accepts(path: Path) -> bool:
    """Tell whether a file is one of this layout by its name."""
    return path.match("dataset_*.json") and path.name not in _OTHERS


def read(path: Path, split: str | None) -> Listing:
    """Return all images of the file, with ``cocoid`` and ``caption_ids`` in their records where the file has them.

    Raises:
        ValueError: The file says something wrong; the place in it is named.
    """
    images = read_json(path, {"images": list})["images"]
    if not images:
        raise ValueError(f"{path}: no images in it")
    entries = [_entry(f"{path}: images[{i}]", said) for i, said in enumerate(images)]
    merged = sum("merged_from" in entry.record for entry in entries)
    notes = (f"{merged:,} images of restval are part of train, by the usual protocol",) if merged else ()
    return Listing(entries, notes)


def _entry(where: str, said: Any) -> Entry:
    fields(said, {"filename": str, "split": str, "sentences": list}, where)
    name, folder = picture_path(said["filename"], where), said.get("filepath")
    full = name if folder in (None, "") else picture_path(f"{_text(folder, where)}/{name}", where)
    split, raws = said["split"].strip(), [_raw(f"{where}.sentences[{k}]", s) for k, s in enumerate(said["sentences"])]
    if split in ("", "all"):
        raise ValueError(f"{where}: 'split' must be a name other than all, found {said['split']!r}")
    record = {key: said[key] for key in ("imgid", "cocoid") if key in said}
    for key, value in record.items():
        if type(value) is not int:
            raise ValueError(f"{where}: {key!r} must be a whole number, found {shown(value)}")
    if split == "restval":
        split, record["merged_from"] = "train", "restval"
    ids = said.get("sentids")
    if ids is not None and (not isinstance(ids, list) or [type(i) for i in ids] != [int] * len(raws)):
        raise ValueError(
            f"{where}: 'sentids' must be a whole number for each of {len(raws)} sentences, found {shown(ids)}"
        )
    entry = Entry(full, where, split, record=record, others=(name,) if name != full else ())
    return add_captions(entry, raws, where.partition(": ")[2], ids)


def _raw(where: str, sentence: Any) -> str:
    return str(fields(sentence, {"raw": str}, where)["raw"])


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{where}: 'filepath' must be a text, found {shown(value)}")
    return value
