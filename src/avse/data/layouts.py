"""A data set's layout, found by its files: which one it is, where its pictures lie, and one split of it.

What a layout's files say is read by the module of that layout; nothing is guessed from the name of a split.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from avse.data import captions, coco, folders, karpathy, regions, research
from avse.data.dataset import PairDataset, Skip
from avse.data.entries import Entry, Listing, fill_splits, merge, no_split, rank, refuse_twice
from avse.data.pictures import Usable, find_pictures, usual_folders
from avse.data.shards import INFO as SHARDS


class _Kind(NamedTuple):
    """A layout: its name, the files that mark it, and how those are found, recognised and read."""

    name: str
    marks: str
    find: Callable[[Path], list[Path]]
    accepts: Callable[[Path], bool]
    read: Callable[[Path, str | None], Listing] | None
    """None: no pictures but features, which `regions.load` reads."""


CAPTIONS = _Kind("captions", "captions.jsonl or captions.csv", captions.find, captions.accepts, captions.read)
FOLDER = _Kind("image folder", "metadata.csv, .jsonl or .parquet", folders.find, folders.accepts, folders.read)
KINDS = (
    _Kind("karpathy", "dataset_*.json", karpathy.find, karpathy.accepts, karpathy.read),
    _Kind("research", "id_mapping.json", research.find, research.accepts, research.read),
    _Kind("coco", "captions_*.json", coco.find, coco.accepts, coco.read),
    _Kind("regions", "*_ims.npy", regions.find, regions.accepts, None),
    FOLDER,
    CAPTIONS,
)
REGIONS = KINDS[3]

_FAMILY_FOLDERS = {"flickr30k": ("f30k", "flickr30k", "Flickr30K"), "coco": ("coco", "mscoco", "COCO")}
_SHORT = {"flickr30k": "f30k", "coco": "coco"}
NAMES = ("flickr30k", "coco", "flickr30k-regions", "coco-regions")
"""Data sets that are known by name; ``root`` is the folder that holds them."""


@dataclass(frozen=True)
class Layout:
    """Which layout was found, and where.

    Attributes:
        kind: Its name, such as "karpathy".
        path: The file that marks it.
        name: What the data set is called in tables.
        family: "flickr30k", "coco", or "" where neither the known name nor the file's name says so.
        claimed: The data was asked for as the family, whose protocols it must then allow.
        bases: Folders below which its pictures are looked for.
        root: The pictures' folder, where it was given.
    """

    kind: str
    path: Path
    name: str
    family: str
    claimed: bool
    bases: tuple[Path, ...]
    root: Path | None


def load_dataset(
    name_or_path: str | Path, *, root: str | Path | None = None, split: str = "test", check_images: bool = True
) -> PairDataset:
    """Return one split of a data set, whose layout is found by its files.

    Where a captions file names no split, images are split 80 / 10 / 10 % by the SHA-256 of their id, and ``summary()``
    says so; three images or more leave no split empty. Karpathy's restval is part of train; dev is called val.

    Args:
        name_or_path: A folder, or the file in it that marks its layout (captions.jsonl or captions.csv, Karpathy's
            dataset_*.json, id_mapping.json, {split}_ims.npy, COCO's captions_*.json, metadata.csv); or a known name,
            "flickr30k", "coco", "flickr30k-regions" or "coco-regions", to be found below ``root``. A folder of such a
            name is written ./coco.
        root: The folder of the pictures; by default they are looked for in the usual places beside the file. For a
            known name the folder that holds the data set.
        split: "train", "val", "test", or what else the files name; "all" for all of them.
        check_images: Read every picture's header; unreadable pictures are skipped. A picture that is cut off further
            on is found only when it is decoded.

    Raises:
        FileNotFoundError: No such folder or file, or no known layout in it.
        ValueError: A file says something wrong (file and line are named), several layouts lie in the folder, the split
            is none of its splits, or nothing usable is left in it.
        ImportError: The layout needs an extra; the message has its pip line.
    """
    layout = find_layout(name_or_path, root)
    if layout.kind == REGIONS.name:
        return regions.load(layout.path, split, layout.name)
    listing, entries, folder = _open(layout, None if split == "all" else split)
    counts = Counter(str(entry.split) for entry in entries)
    if split != "all" and split not in counts:
        there = {name: f"{count:,} images" for name, count in counts.most_common()}
        hint = captions.way_out(split, there, bool(listing.notes)) if layout.kind == CAPTIONS.name else ""
        if split == "train" and (layout.path.parent / SHARDS).is_file():
            hint = f"; its training pairs are shards: stream them by data.shards={layout.path.parent}"
        raise no_split(layout.path, split, there, hint)
    if split == "all":
        entries = _once(entries)
    chosen = [entry for entry in entries if split in ("all", entry.split)]
    data = _assemble(layout, split, chosen, folder, listing.notes, check_images)
    if not data.num_images:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in Counter(skip.kind for skip in data.skipped).items())
        looked = {str(folder): 0, **{str(place): 0 for place in _places(layout, listing)}}
        raise ValueError(
            f"{layout.path}: nothing usable in split {split!r}: {len(chosen):,} images listed, pictures looked for in "
            f"{', '.join(looked)}; skipped: {kinds or 'none'}"
        )
    return data


def load_splits(layout: Layout) -> dict[str, PairDataset]:
    """Return every split of a layout, unreadable pictures and all; a split of which nothing is left is there, empty.

    Raises:
        ValueError: As `load_dataset`.
    """
    if layout.kind == REGIONS.name:
        names = research.splits_of(layout.path.parent, regions.ENDING)
        return {split: regions.load(layout.path, split, layout.name) for split in names}
    listing, entries, folder = _open(layout, None)
    parts: dict[str, list[Entry]] = {}
    for entry in entries:
        parts.setdefault(str(entry.split), []).append(entry)
    return {
        split: _assemble(layout, split, chosen, folder, listing.notes, check_images=False)
        for split, chosen in parts.items()
    }


def find_layout(name_or_path: str | Path, root: str | Path | None = None) -> Layout:
    """Return the layout that a path or a known name stands for.

    Raises:
        FileNotFoundError: Nothing there, or no known layout; what was looked for is listed.
        ValueError: Several layouts; the file to give instead is named.
    """
    given = None if root is None else Path(root)
    if isinstance(name_or_path, str) and name_or_path in NAMES and not (given is None and Path(name_or_path).exists()):
        return _find_known(name_or_path, given)
    path = Path(name_or_path)
    if path.is_file():
        kinds = [kind for kind in KINDS if kind.accepts(path)]
        if not kinds:
            marks = ", ".join(kind.marks for kind in KINDS[:-1])
            raise ValueError(f"{path}: a caption file ends in .jsonl or .csv; other layouts are marked by {marks}")
        return _layout(kinds[0], path, given)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such folder or file; a data set is a folder with {CAPTIONS.marks} or another known layout, or "
            f"one of the names {', '.join(NAMES)} with root="
        )
    found = _found_in(path)
    if not found:
        others = ", ".join(kind.marks for kind in KINDS[:-1])
        raise FileNotFoundError(
            f"{path} holds neither {' nor '.join(captions.CAPTION_FILES)}, nor what marks another layout: {others}"
        )
    return _layout(*_only(f"{path} holds", found, path), given)


def _find_known(name: str, root: Path | None) -> Layout:
    if root is None:
        raise FileNotFoundError(f"{name!r} is the name of a known data set: give the folder that holds it as root=")
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder, where {name!r} was to be found")
    family, features = name.removesuffix("-regions"), name.endswith("-regions")
    folders_ = [root, *(root / place for place in _FAMILY_FOLDERS[family])]
    if features:
        folders_ += [place / "precomp" for place in folders_] + [root / f"{_SHORT[family]}_precomp"]
    wanted = [REGIONS] if features else [kind for kind in KINDS[:3] if kind.name != "coco"]
    found = {path.resolve(): (kind, path) for place in folders_ for kind, path in _found_in(place, wanted, family)}
    if not found and name == "coco":
        found = {p.resolve(): (kind, p) for place in folders_ for kind, p in _found_in(place, [KINDS[2]])}
    if not found:
        marks = REGIONS.marks if features else f"dataset_{family}.json or id_mapping.json"
        raise FileNotFoundError(
            f"{name!r} was not found below {root}: {marks} was looked for in {', '.join(map(str, folders_))}"
        )
    kind, path = _only(f"{root} holds {name!r} several times:", list(found.values()), root)
    bases = (path.parent, path.parent.parent, root)
    return Layout(kind.name, path, name, family, True, tuple(dict.fromkeys(bases)), None)


def _found_in(folder: Path, kinds: Sequence[_Kind] = KINDS, family: str = "") -> list[tuple[_Kind, Path]]:
    """Return what marks a layout in a folder; image folders only where nothing else does."""
    found = [(kind, path) for kind in kinds if kind is not FOLDER for path in kind.find(folder)]
    if family:  # another family's list may lie beside it
        found = [(kind, path) for kind, path in found if kind.name != "karpathy" or path.stem == f"dataset_{family}"]
    return found or [(kind, path) for kind in kinds if kind is FOLDER for path in kind.find(folder)]


def _only(said: str, found: list[tuple[_Kind, Path]], folder: Path) -> tuple[_Kind, Path]:
    if len(found) > 1:
        names = " and ".join(os.path.relpath(path, folder) for _, path in found)
        raise ValueError(f"{said} {names}: name the one to read")
    return found[0]


def _layout(kind: _Kind, path: Path, root: Path | None) -> Layout:
    if root is not None and not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder of pictures")
    if root is not None and kind in (REGIONS, FOLDER):
        raise ValueError(f"{path}: root={root} has no use here: this layout has its pictures or features with it")
    family = {"dataset_flickr30k": "flickr30k", "dataset_coco": "coco"}.get(path.stem, "")
    if kind.name == "coco":
        family = "coco"
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    home = folder.parent if folder.name in ("annotations", "precomp") else folder
    return Layout(kind.name, path, home.name, family, False, (path.parent, path.parent.parent), root)


def _places(layout: Layout, listing: Listing) -> list[Path]:
    """Return the folders in which the pictures of a layout may lie."""
    if listing.pictures is not None:
        return [listing.pictures]
    if layout.kind == CAPTIONS.name:
        return [layout.root] if layout.root else [layout.path.parent, layout.path.parent / "images"]
    return usual_folders([layout.root] if layout.root else layout.bases)


def _open(layout: Layout, split: str | None) -> tuple[Listing, list[Entry], Path]:
    """Return what the layout says, its entries as they lie on the disk, and the folder of the pictures."""
    read = next(kind.read for kind in KINDS if kind.name == layout.kind)
    assert read is not None  # features have no pictures
    listing = read(layout.path, split)
    folder = find_pictures(listing.entries, _places(layout, listing))
    if not listing.mergeable:
        refuse_twice(listing.entries)
        return listing, listing.entries, folder
    entries = merge(layout.path, listing.entries)
    notes = (*listing.notes, *fill_splits(layout.path, entries))
    return Listing(entries, notes, pictures=listing.pictures), entries, folder


def _once(entries: list[Entry]) -> list[Entry]:
    """Return each image once, where several splits list it: in the one that measures, in testall rather than test."""
    last: dict[str, Entry] = {}
    for entry in sorted((entry for entry in entries if not entry.dropped), key=rank):
        last[entry.image] = entry
    for entry in entries:
        kept = last[entry.image]
        if kept is not entry and not entry.dropped and rank(entry) < rank(kept):
            entry.dropped = f"in two splits: kept in {kept.split!r} ({kept.where}), not in {entry.split!r}"
    return [entry for entry in entries if entry.dropped or last[entry.image] is entry]


def _assemble(
    layout: Layout, split: str, chosen: list[Entry], folder: Path, notes: tuple[str, ...], check_images: bool
) -> PairDataset:
    usable = Usable(folder, check_images=check_images, linked_folders=layout.kind not in (CAPTIONS.name, FOLDER.name))
    kept: list[Entry] = []
    skipped: list[Skip] = []
    for entry in chosen:
        skipped += entry.skipped
        if reason := entry.dropped or usable.reason(entry):
            skipped.append(Skip(entry.image, reason))
        else:
            kept.append(entry)
    return PairDataset(
        name=layout.name,
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
