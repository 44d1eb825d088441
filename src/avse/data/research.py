"""The layout of the research repositories: ``id_mapping.json``, ``{split}_ids.txt`` and ``{split}_caps.txt``.

The mapping gives each image id its file name. The texts lie beside it or in ``precomp/``; ``{split}_caps.txt`` has one
caption a line, ``{split}_ids.txt`` one id a line, once an image or once a caption. ``dev`` is called val. The layout of
features has the same two text files. Looks at no picture itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from avse.data.entries import Entry, Listing, add_captions, no_split, picture_path, read_json, read_lines, shown

MAPPING = "id_mapping.json"
_COCO = re.compile(r"COCO_([a-z]+\d{4})_\d+\.\w+")
_DEV = ("dev", "val")


def find(folder: Path) -> list[Path]:
    """Return the mapping in a folder."""
    return [folder / MAPPING] if (folder / MAPPING).is_file() else []


def accepts(path: Path) -> bool:
    """Tell whether a file is one of this layout by its name."""
    return path.name == MAPPING


def read(path: Path, split: str | None) -> Listing:
    """Return the images of one split, or of all where ``split`` is None; each record has its ``id``.

    Raises:
        ValueError: No such split, or a file says something wrong; file and line are named.
    """
    mapping = read_json(path)
    texts = path.parent if list(path.parent.glob("*_caps.txt")) else path.parent / "precomp"
    splits = splits_of(texts, "_caps.txt")
    if not splits:
        raise ValueError(f"{path}: no {{split}}_caps.txt beside it or in precomp/, as train_caps.txt")
    if split is not None and split not in splits:
        raise no_split(texts, split, {name: file.name for name, file in splits.items()})
    return Listing(
        [entry for name in splits if split in (None, name) for entry in _read_split(path, mapping, splits[name], name)]
    )


def splits_of(folder: Path, ending: str) -> dict[str, Path]:
    """Return the splits that have a file of this ending in a folder; dev is called val.

    Raises:
        ValueError: Both dev and val are there.
    """
    found = {path.name.removesuffix(ending): path for path in sorted(folder.glob(f"*{ending}"))}
    if all(name in found for name in _DEV):
        raise ValueError(
            f"{folder} holds {' and '.join(name + ending for name in _DEV)}, both called val: take one away"
        )
    order = ["train", "val", "test"]
    named = {"val" if name == "dev" else name: path for name, path in found.items()}
    return dict(sorted(named.items(), key=lambda item: (order.index(item[0]) if item[0] in order else 3, item[0])))


@dataclass(frozen=True)
class Texts:
    """The text files of one split.

    Attributes:
        path: The captions' file.
        captions: M captions, in its order; an empty one is not left out here.
        counts: For each of N images how many of the captions are its own, in order.
        ids: N ids, or None where there is no file of them.
        lines: N, the line of each id in ``ids_path``, from 1.
        ids_path: The ids' file.
    """

    path: Path
    captions: list[str]
    counts: list[int]
    ids: list[str] | None
    lines: list[int]
    ids_path: Path


def read_texts(path: Path, images: int | None = None) -> Texts:
    """Read ``{split}_caps.txt`` and, where it is there, the ``{split}_ids.txt`` beside it.

    Args:
        path: The captions' file.
        images: N where it is known, as from the rows of a file of features.

    Raises:
        ValueError: Counts that do not fit, an empty id, or an image whose lines do not stand together.
    """
    captions, ids_path = read_lines(path), path.with_name(path.name.removesuffix("_caps.txt") + "_ids.txt")
    if not captions:
        raise ValueError(f"{path}: no captions in it")
    if not ids_path.is_file():
        return Texts(path, captions, _share(path, captions, images or 0, "rows of features"), None, [], ids_path)
    ids = [line.strip() for line in read_lines(ids_path)]
    if "" in ids:
        raise ValueError(f"{ids_path}:{ids.index('') + 1}: an image id is wanted, the line is empty")
    if not ids:
        raise ValueError(f"{ids_path}: no ids in it")
    starts = [i for i, image in enumerate(ids) if i == 0 or image != ids[i - 1]]
    if len(ids) == len(captions):  # once a caption
        counts = [end - start for start, end in zip(starts, [*starts[1:], len(ids)])]
    else:
        counts, starts = _share(path, captions, len(ids), f"ids in {ids_path.name}"), list(range(len(ids)))
    seen: dict[str, int] = {}
    for start in starts:
        if (first := seen.setdefault(ids[start], start)) != start:
            raise ValueError(
                f"{ids_path}:{start + 1}: the image {ids[start]!r} stands here and in line {first + 1}: an image "
                "stands once, or once for each of its captions in lines that follow one another"
            )
    return Texts(path, captions, counts, [ids[start] for start in starts], [s + 1 for s in starts], ids_path)


def _share(path: Path, captions: list[str], images: int, what: str) -> list[int]:
    each, rest = divmod(len(captions), images) if images else (0, 1)
    if rest or not each:
        near = f"; a caption or an id is missing: {images * 5:,} would be five an image" if images else ""
        raise ValueError(
            f"{path}: {len(captions):,} captions for {images:,} {what}: every image must have as many{near}"
        )
    return [each] * images


def _read_split(path: Path, mapping: dict[str, object], caps: Path, split: str) -> list[Entry]:
    texts = read_texts(caps, images=None) if _ids_of(caps).is_file() else None
    if texts is None or texts.ids is None:
        raise ValueError(f"{caps}: no {_ids_of(caps).name} beside it, which says whose the captions are")
    entries, start = [], 0
    for image_id, line, count in zip(texts.ids, texts.lines, texts.counts):
        where = f"{texts.ids_path}:{line}"
        if image_id not in mapping:
            raise ValueError(
                f"{where}: the id {shown(image_id)} is none of the {len(mapping):,} ids of {path}: add its file name"
            )
        name = picture_path(mapping[image_id], f"{path}: the id {shown(image_id)}")
        base = PurePosixPath(name).name
        coco = _COCO.fullmatch(base)
        others = dict.fromkeys(other for other in (*([f"{coco[1]}/{base}"] if coco else []), base) if other != name)
        entry = Entry(name, where, split, record={"id": image_id}, others=tuple(others))
        for k in range(start, start + count):
            add_captions(entry, [texts.captions[k]], f"{caps.name}:{k + 1}")
        entries.append(entry)
        start += count
    return entries


def _ids_of(caps: Path) -> Path:
    return caps.with_name(caps.name.removesuffix("_caps.txt") + "_ids.txt")
