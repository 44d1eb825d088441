"""``index.json``: what an index is, written last when it is made, checked first when it is opened."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avse.files import write_json
from avse.index.contract import Layout, StoreError

NAME = "index.json"
FORMAT = "avse-index"
VERSION = 1
STORES = ("embedded", "memory")


@dataclass(frozen=True)
class Manifest:
    """The content of ``index.json``; folders are relative to the index's own where they can be.

    Attributes:
        store: "embedded" or "memory".
        layout: The side held and P, Q, C.
        model: Folder of the model, None if it was never saved.
        fingerprint: The model's.
        source: Folder the pictures' paths are relative to, None before the first.
    """

    store: str
    layout: Layout
    model: str | None
    fingerprint: str
    source: str | None = None

    def write(self, folder: Path) -> None:
        """Write ``folder/index.json`` atomically."""
        fields = {"store": self.store, **asdict(self.layout)}
        fields |= {"model": self.model, "fingerprint": self.fingerprint, "source": self.source}
        write_json(folder / NAME, {"format": FORMAT, "version": VERSION, **fields})


def read_manifest(folder: Path) -> Manifest:
    """Return what ``folder`` says it is.

    Raises:
        FileNotFoundError: No such folder.
        StoreError: The folder is no index, or its ``index.json`` is damaged or of a later version.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such index (avse index FOLDER --out {folder} makes one)")
    if not is_index(folder):
        raise StoreError(f"{folder} is not an index: it has no {NAME}")
    try:
        found = json.loads((folder / NAME).read_text("utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r}, not {FORMAT!r}")
        if found["version"] > VERSION:
            raise StoreError(
                f"{folder} has format version {found['version']}, this avse reads up to {VERSION}: update avse"
            )
        return _from_json(found)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreError(
            f"{folder / NAME} is damaged ({type(error).__name__}: {error}): make the index anew (--force)"
        ) from error


def is_index(folder: Path) -> bool:
    """Tell whether ``folder`` holds an index, whole or damaged."""
    return (folder / NAME).is_file()


def relative_folder(target: Path, folder: Path) -> str:
    """Return ``target`` relative to ``folder`` as posix path; absolute where no such path exists (other drives)."""
    try:
        return Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return target.resolve().as_posix()


def _from_json(found: dict[str, Any]) -> Manifest:
    layout = Layout(found["side"], *(found[key] for key in ("num_image_blocks", "num_text_blocks", "block_width")))
    if layout.side not in ("images", "texts") or found["store"] not in STORES:
        raise ValueError(f"side {layout.side!r}, store {found['store']!r}")
    if not all(isinstance(size, int) and size > 0 for size in (*layout.document, *layout.query)):
        raise ValueError(f"block counts and width {layout.document}, {layout.query}")
    if not isinstance(found["fingerprint"], str):
        raise TypeError(f"fingerprint {found['fingerprint']!r}")
    for key in ("model", "source"):
        if not isinstance(found[key], (str, type(None))):
            raise TypeError(f"{key} {found[key]!r}")
    return Manifest(found["store"], layout, found["model"], found["fingerprint"], found["source"])
