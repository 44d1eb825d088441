"""Pairs of ``datasets``, ``torch.utils.data`` or any iterable, as a folder that all of avse takes.

Pictures are copied once, by the SHA-256 of their content: files and bytes as they are, Pillow images and arrays as PNG,
which loses nothing. So rows of one picture become one picture with several captions, and no picture lands in two
splits by a hash. Knows neither library: rows and what is in them.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from avse.data.build import build_folder
from avse.data.dataset import Skip
from avse.data.entries import ALIASES, kind_of, shown
from avse.files import write_text
from avse.images import ImageError, open_image, read_image

log = logging.getLogger(__name__)

_CAPTIONS = "captions.jsonl"


def from_pairs(
    source: Any,
    out: str | Path,
    *,
    image: str = "image",
    text: str = "caption",
    split: str | None = None,
    image_id: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write pairs into the new folder ``out`` with captions.jsonl; `load_dataset` and every verb read it then.

    A picture is a path, the bytes of a file, a Pillow image, an array (H, W, 3) or (H, W), uint8 or float in [0, 1], or
    a tensor of the same kinds with its channels first; a caption a text or a list of texts. Rows are taken one by one.

    Args:
        source: ``datasets.Dataset``, ``IterableDataset`` or ``DatasetDict``; a map-style or iterable dataset of torch;
            or any iterable: of mappings, or of pairs (picture, caption). A mapping of these is one source a split.
        out: The folder.
        image: The column of pictures, where rows are mappings.
        text: The column of captions.
        split: The column that names the split; None: a mapping's keys, or none: assigned by a hash of the content.
        image_id: A column whose equal values say that rows have one picture, the first row's.
        force: Replace what is there.

    Returns:
        The counts of ``pictures``, ``captions`` and ``splits``, and ``skipped``: name and reason of each row left out.

    Raises:
        FileExistsError: ``out`` holds something and not ``force``.
        ValueError: A column that is not there (those there are named), a caption that is no text, a split without a
            name, or no usable picture.
    """
    out = Path(out)
    if not force and out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise FileExistsError(f"{out} holds something: name another folder, or replace it with force=True")
    columns = {"image": image, "text": text, "split": split, "image_id": image_id}
    if isinstance(source, Mapping) and split is not None:
        raise ValueError(f"split={split!r} does not go with a mapping, whose keys {list(source)} are the splits")
    parts = source if isinstance(source, Mapping) else {None: source}

    def fill(folder: Path) -> dict[str, Any]:
        return _Copy(folder, columns).run(parts)

    return build_folder(out, {"kind": "pairs", **columns}, fill, force=force)


class _Copy:
    """The folder on its way: what was copied, and the lines of captions.jsonl."""

    def __init__(self, folder: Path, columns: Mapping[str, str | None]) -> None:
        self._folder, self._columns = folder, columns
        self._names: dict[str, str] = {}  # of copied pictures, by the digest of their content
        self._ids: dict[str, str] = {}
        self._lines: dict[tuple[str | None, str], dict[str, Any]] = {}
        self._skipped: list[Skip] = []
        (folder / "images").mkdir()

    def run(self, parts: Mapping[Any, Any]) -> dict[str, Any]:
        """Copy everything and return the counts."""
        for part, source in parts.items():
            split = None if part is None else _split_name(part, "the mapping")
            rows = tqdm(_rows(source, self._columns["image"]), desc=f"copying {part or 'pairs'}", unit="row")
            for number, row in enumerate(rows):
                where = f"{part}, row {number}" if part is not None else f"row {number}"
                self._add(row, split, where)
        if not self._lines:
            first = f"; the first, {self._skipped[0].name}: {self._skipped[0].reason}" if self._skipped else ""
            raise ValueError(f"no usable picture in the source, {len(self._skipped):,} rows were left out{first}")
        if self._skipped:
            log.warning("%d rows were left out; the first, %s: %s", len(self._skipped), *_plain(self._skipped[0]))
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in self._lines.values()]
        write_text(self._folder / _CAPTIONS, "".join(lines))
        return {
            "pictures": len({line["image"] for line in self._lines.values()}),
            "captions": sum(len(line["captions"]) for line in self._lines.values()),
            "splits": dict(Counter(line["split"] for line in self._lines.values() if "split" in line)),
            "skipped": [_plain(skip) for skip in self._skipped],
        }

    def _add(self, row: Any, split: str | None, where: str) -> None:
        if isinstance(row, OSError):
            self._skipped.append(Skip(where, f"cannot be read: {row}"))
            return
        picture, captions, named, key = self._fields(row, where)
        if self._columns["split"] is not None:
            split = _split_name(named, where)
        try:
            if key is None:
                name = self._copy(picture)
            elif key in self._ids:
                name = self._ids[key]
            else:
                name = self._ids[key] = self._copy(picture)
        except (ImageError, OSError) as error:
            reason = error.reason if isinstance(error, ImageError) else error.strerror or str(error)
            self._skipped.append(Skip(where, reason))
            return
        line = self._lines.setdefault((split, name), {"image": name, "captions": []})
        line["captions"] += captions
        line |= {name: value for name, value in (("split", split), ("id", key)) if value is not None}

    def _fields(self, row: Any, where: str) -> tuple[Any, list[str], Any, str | None]:
        """Return picture, captions, split and id of a row; the last two None where no column is named."""
        wanted = {role: name for role, name in self._columns.items() if name is not None}
        if isinstance(row, Mapping):
            for role, name in wanted.items():
                if name not in row:
                    raise ValueError(f"{where}: no column {name!r}; there are {list(row)}: say which by {role}=")
            values = {role: row[name] for role, name in wanted.items()}
        elif isinstance(row, tuple | list) and len(row) == 2 and len(wanted) == 2:
            values = dict(zip(("image", "text"), row))
        else:
            found = f"{len(row)} values" if isinstance(row, tuple | list) else kind_of(row)
            raise ValueError(
                f"{where}: a pair (picture, caption) or a mapping with {list(wanted.values())}, not {found}"
            )
        texts = values["text"] if isinstance(values["text"], list | tuple) else [values["text"]]
        if not all(isinstance(text, str | None) for text in texts):
            raise ValueError(f"{where}: the caption must be a text or a list of texts, found {shown(values['text'])}")
        key = values.get("image_id")
        return values["image"], [text or "" for text in texts], values.get("split"), None if key is None else str(key)

    def _copy(self, picture: Any) -> str:
        """Copy a picture, if its content is new, and return its name in the folder.

        Raises:
            ImageError, OSError: It cannot be read.
        """
        data = _content(picture)
        digest = hashlib.sha256(data).hexdigest()[:32]
        if digest not in self._names:
            path = self._folder / "images" / digest
            path.write_bytes(data)
            try:
                with open_image(path) as opened:
                    suffix = f".{str(opened.format).lower()}"
            except ImageError:
                path.unlink()
                raise
            suffix = {".jpeg": ".jpg", ".mpo": ".jpg", ".jpeg2000": ".jp2"}.get(suffix, suffix)
            path.rename(path.with_suffix(suffix))
            self._names[digest] = f"images/{digest}{suffix}"
        return self._names[digest]


def _rows(source: Any, image: str | None) -> Iterator[Any]:
    """Yield rows; pictures of ``datasets`` as they are stored, undecoded. A row that cannot be read is its error."""
    features = getattr(source, "features", None) or {}
    kind: Any = features.get(image)
    if type(kind).__module__.startswith("datasets.") and type(kind).__name__ == "Image":
        source = source.cast_column(image, type(kind)(decode=False))
    if hasattr(source, "__iter__") or not hasattr(source, "__len__"):
        yield from source
        return
    for number in range(len(source)):
        try:
            yield source[number]
        except OSError as error:  # a picture that the dataset opens by itself
            yield error


def _content(picture: Any) -> bytes:
    """Return the bytes of a picture's file, or of a PNG of its pixels."""
    if isinstance(picture, Mapping) and {"bytes", "path"} <= picture.keys():  # an undecoded one of datasets
        picture = picture["path"] if picture["bytes"] is None else picture["bytes"]
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | Path):
        return Path(picture).read_bytes()
    if hasattr(picture, "detach"):  # a tensor
        picture = picture.detach().cpu().numpy()
        picture = np.moveaxis(picture, 0, -1) if picture.ndim == 3 else picture
        picture = picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture
    if not isinstance(picture, Image.Image | np.ndarray):
        raise ImageError("picture", f"neither a path, bytes, an image nor an array: {kind_of(picture)}")
    stream = io.BytesIO()
    read_image(picture).save(stream, "PNG")
    return stream.getvalue()


def _split_name(name: Any, where: str) -> str:
    """Return our name of a split: validation and dev are val."""
    if not isinstance(name, str) or name in ("", "all"):
        raise ValueError(f"{where}: a split must have a name other than all, found {shown(name)}")
    return next((own for own, others in ALIASES.items() if name.lower() in (own, *others)), name)


def _plain(skip: Skip) -> tuple[str, str]:
    return skip.name, skip.reason
