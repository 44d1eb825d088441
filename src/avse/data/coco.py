"""MS-COCO's own captions: ``captions_train2014.json``, ``captions_val2014.json`` and those of 2017.

``images`` (``id``, ``file_name``) and ``annotations`` (``id``, ``image_id``, ``caption``) are lists; the split is the
one in the file's name. There is no test among them: the captions of COCO's test pictures are not public, and the
field's test split is a part of val2014 that Karpathy's ``dataset_coco.json`` lists. Looks at no picture itself.
"""

from __future__ import annotations

import re
from pathlib import Path

from avse.data.entries import Entry, Listing, add_captions, fields, no_split, picture_path, read_json

_NAME = re.compile(r"captions_([A-Za-z]+)(\d*)\.json")


def find(folder: Path) -> list[Path]:
    """Return one file of each year in a folder and in its ``annotations``: the files of one year belong together."""
    found: dict[tuple[Path, str], Path] = {}
    for place in (folder, folder / "annotations"):
        for path in sorted(place.glob("captions_*.json")):
            if name := _NAME.fullmatch(path.name):
                found.setdefault((place, name[2]), path)
    return list(found.values())


def accepts(path: Path) -> bool:
    """Tell whether a file is one of this layout by its name."""
    return _NAME.fullmatch(path.name) is not None


def read(path: Path, split: str | None) -> Listing:
    """Return the images of one split, or of all where ``split`` is None, of the year of ``path``.

    Raises:
        ValueError: No such split, or the file says something wrong; the place in it is named.
    """
    splits = _splits(path)
    if split is not None and split not in splits:
        told = "; the captions of COCO's test pictures are not public: the field's test is a part of val2014 that "
        told += "Karpathy's dataset_coco.json lists, give that file"
        raise no_split(path.parent, split, dict.fromkeys(splits, ""), told if split == "test" else "")
    return Listing([entry for name in splits if split in (None, name) for entry in _read_file(splits[name], name)])


def _splits(path: Path) -> dict[str, Path]:
    """Return the files of the year of ``path`` by split."""
    year = _name(path)[2]
    found = {_name(other)[1]: other for other in sorted(path.parent.glob(f"captions_*{year}.json")) if accepts(other)}
    return {split: other for split, other in found.items() if _name(other)[2] == year}


def _name(path: Path) -> re.Match[str]:
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise ValueError(
            f"{path}: a file of COCO's captions is called captions_SPLITYEAR.json, as captions_val2014.json"
        )
    return name


def _read_file(path: Path, split: str) -> list[Entry]:
    said = read_json(path, {"images": list, "annotations": list})
    folder, entries = f"{split}{_name(path)[2]}", dict[int, Entry]()
    for i, image in enumerate(said["images"]):
        where = f"{path}: images[{i}]"
        fields(image, {"id": int, "file_name": str}, where)
        if image["id"] in entries:
            raise ValueError(f"{where}: the id {image['id']} stands twice, first in {entries[image['id']].where}")
        name = picture_path(image["file_name"], where)
        record = {"cocoid": image["id"], "caption_ids": []}
        entries[image["id"]] = Entry(f"{folder}/{name}", where, split, record=record, others=(name,))
    for i, caption in enumerate(said["annotations"]):
        where = f"{path}: annotations[{i}]"
        fields(caption, {"id": int, "image_id": int, "caption": str}, where)
        if caption["image_id"] not in entries:
            raise ValueError(
                f"{where}: image_id {caption['image_id']} is none of the {len(entries):,} images of the file: "
                "it is not whole, fetch it anew"
            )
        add_captions(entries[caption["image_id"]], [caption["caption"]], f"annotations[{i}]", [caption["id"]])
    if not entries:
        raise ValueError(f"{path}: no images in it")
    return list(entries.values())
