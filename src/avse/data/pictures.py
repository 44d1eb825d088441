"""Where the pictures of a data set lie, and which of them can be used.

Knows no layout: names and folders. A folder is listed once, so that a hundred thousand pictures are found in a second.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from avse.data.entries import Entry
from avse.images import ImageError, check_image

USUAL = ("", "images", "Images", "flickr30k-images", "flickr30k_images", "coco-images", "coco_images")
"""Folders in which the pictures of the known data sets lie, below the folder of their captions or beside it."""


def usual_folders(bases: Sequence[Path]) -> list[Path]:
    """Return the folders of `USUAL` there are below ``bases``, without repeats, in that order."""
    folders = dict.fromkeys(base / name for base in bases for name in USUAL)
    return [folder for folder in folders if folder.is_dir()]


def find_pictures(entries: Sequence[Entry], folders: Sequence[Path]) -> Path:
    """Return the folder that holds most of the pictures, and call each entry's image by its name there."""
    names = dict.fromkeys((entry.image, *entry.others) for entry in entries)
    best: dict[tuple[str, ...], str] = {}
    chosen = folders[0]
    for folder in folders:
        listed = _Names(folder)
        found = {alternatives: there for alternatives in names if (there := listed.first_of(alternatives))}
        if len(found) > len(best):
            best, chosen = found, folder
        if len(found) == len(names):
            break
    for entry in entries:
        entry.image = best.get((entry.image, *entry.others), entry.image)
    return chosen


class Usable:
    """Says why a picture cannot be used.

    Args:
        folder: The folder of the pictures.
        check_images: Read each header.
        linked_folders: A folder inside may be a link to another place, as train2014 often is.
    """

    def __init__(self, folder: Path, *, check_images: bool, linked_folders: bool) -> None:
        self.folder, self.check_images, self.linked = folder, check_images, linked_folders
        self.real, self.parents = folder.resolve(), dict[str, Path]()

    def reason(self, entry: Entry) -> str:
        """Return why the entry's picture cannot be used, empty where it can.

        Raises:
            ValueError: It is a link that leaves the folder.
        """
        picture = f"{self.folder}/{entry.image}"
        parent = self._parent(entry.image.rpartition("/")[0])
        is_link = os.path.islink(picture)
        real = Path(picture).resolve() if is_link else parent
        if real is not self.real and not any(real.is_relative_to(home) for home in self._homes(parent)):
            raise ValueError(
                f"{entry.where}: {entry.image!r} is a link that leaves {self.folder}: copy the picture there"
            )
        if not os.path.exists(picture):
            return "missing: no such file"
        if not entry.captions:
            return "no caption"
        try:
            if self.check_images:
                check_image(picture)
        except ImageError as error:
            return error.reason
        return ""

    def _parent(self, name: str) -> Path:
        """Return what a folder below really is; `real` itself where it lies in it, so that most need no comparison."""
        if name not in self.parents:
            parent = (self.folder / name).resolve()
            self.parents[name] = self.real if parent.is_relative_to(self.real) else parent
        return self.parents[name]

    def _homes(self, parent: Path) -> tuple[Path, ...]:
        return (self.real, parent) if self.linked else (self.real,)


class _Names:
    """The names in a folder and the folders below it, each listed when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.listed = folder, dict[str, set[str]]()

    def first_of(self, alternatives: Sequence[str]) -> str:
        """Return the first of several names that is there, as it is written on the disk; empty where none is."""
        return next((form for name in alternatives for form in _forms(name) if self._holds(form)), "")

    def _holds(self, name: str) -> bool:
        parent, _, last = name.rpartition("/")
        if parent not in self.listed:
            self.listed[parent] = _files(self.folder / parent)
        return last in self.listed[parent]


def _files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as items:
            return {item.name for item in items if item.is_file()}
    except OSError:  # no such folder
        return set()


def _forms(name: str) -> Iterator[str]:
    """Yield a name as written, with forward slashes, composed and decomposed."""
    yield name
    slashes = name.replace("\\", "/")
    if slashes != name or not name.isascii():
        for form in dict.fromkeys((slashes, *(unicodedata.normalize(kind, slashes) for kind in ("NFC", "NFD")))):
            yield PurePosixPath(form).as_posix()
