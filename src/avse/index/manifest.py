"""``index.json``: what an index is, written last when it is made, checked first when it is opened.

An index on a server has the same content as metadata of its collection.
"""

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
VERSION = 2
STORES = ("embedded", "memory", "server")
_OTHERS = ("model", "fingerprint", "source", "shards", "replicas")
_LONG, _MANY = 4096, 1 << 16
"""Characters of a path at most, and blocks, numbers in a block, shards or replicas."""


@dataclass(frozen=True)
class Manifest:
    """What an index says of itself; folders are relative to the index's own where they can be.

    Attributes:
        store: "embedded", "memory" or "server".
        layout: The side held and P, Q, C.
        model: Folder of the model, None if it was never saved.
        fingerprint: The model's.
        source: Folder the pictures' paths are relative to, None before the first.
        shards: Number of shards the entries are spread over.
        replicas: Copies a server keeps of each shard.
    """

    store: str
    layout: Layout
    model: str | None
    fingerprint: str
    source: str | None = None
    shards: int = 1
    replicas: int = 1

    def __post_init__(self) -> None:
        """Refuse with a ValueError what could not be read again."""
        layout, fingerprint = self.layout, self.fingerprint
        if layout.side not in ("images", "texts") or self.store not in STORES:
            raise ValueError(f"side {layout.side!r:.80}, store {self.store!r:.80}")
        for size in (*layout.document, *layout.query, self.shards, self.replicas):
            if type(size) is not int or not 1 <= size <= _MANY:
                raise ValueError(f"a number of blocks, shards or replicas, or a width, of {size!r:.80}: 1 to {_MANY:,}")
        if not isinstance(fingerprint, str) or len(fingerprint) > 256 or not fingerprint.isprintable():
            raise ValueError(f"fingerprint {fingerprint!r:.80}: at most 256 printable characters are wanted")
        for path in filter(lambda path: path is not None, (self.model, self.source)):
            if not isinstance(path, str) or len(path) > _LONG or "\0" in path or not path.encode():
                raise ValueError(f"folder {path!r:.80}")

    def to_json(self) -> dict[str, Any]:
        """Return the content as `from_json` reads it."""
        fields = asdict(self)
        return {"format": FORMAT, "version": VERSION, "store": self.store, **fields.pop("layout"), **fields}

    def write(self, folder: Path) -> None:
        """Write ``folder/index.json`` atomically."""
        write_json(folder / NAME, self.to_json())


def read_manifest(folder: Path) -> Manifest:
    """Return what ``folder`` says it is.

    Raises:
        FileNotFoundError: No such folder.
        StoreError: The folder is no index, or its ``index.json`` is damaged or of another version.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such index (avse index FOLDER --out {folder} makes one)")
    if not is_index(folder):
        raise StoreError(f"{folder} is not an index: it has no {NAME}")
    try:
        return from_json(json.loads((folder / NAME).read_text("utf-8")), str(folder))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{folder / NAME} is damaged ({error}): make the index anew (--force)") from error


def from_json(found: Any, place: str) -> Manifest:
    """Return the manifest that was read from JSON.

    Raises:
        StoreError: It is of another version; ``place`` is named.
        ValueError: It is no manifest.
    """
    try:
        if found["format"] != FORMAT:
            raise ValueError(f"format {found['format']!r:.80}, not {FORMAT!r}")
        if found["version"] != VERSION:
            raise StoreError(
                f"{place} has format version {found['version']!r:.80}, this avse reads {VERSION}: use the avse that "
                "made it, or make the index anew (--force)"
            )
        layout = Layout(found["side"], *(found[key] for key in ("num_image_blocks", "num_text_blocks", "block_width")))
        return Manifest(found["store"], layout, *(found[key] for key in _OTHERS))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def is_index(folder: Path) -> bool:
    """Tell whether ``folder`` holds an index, whole or damaged."""
    return (folder / NAME).is_file()


def relative_folder(target: Path, folder: Path) -> str:
    """Return ``target`` relative to ``folder`` as posix path; absolute where no such path exists (other drives)."""
    try:
        return Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return target.resolve().as_posix()
