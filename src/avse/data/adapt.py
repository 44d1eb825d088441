"""Pairs of ``datasets``, ``torch.utils.data`` or any iterable, as a folder that all of avse takes.

Pictures are copied once, by the SHA-256 of their content: files and bytes as they are, Pillow images and arrays as PNG.
So rows of one picture become one picture with several captions, and no picture lands in two splits. Knows neither
library: rows and what is in them.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from avse.data.build import build_folder
from avse.data.dataset import Skip
from avse.data.entries import ALIASES, Entry, is_unicode, kind_of, rank, shown
from avse.data.layouts import find_layout, load_splits
from avse.files import is_taken, write_text
from avse.images import ImageError, open_image, read_image, turned

log = logging.getLogger(__name__)

_CAPTIONS = "captions.jsonl"
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


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

    A picture is a path, a file's bytes, a file opened for reading bytes, a Pillow image, an array (H, W, 3) or (H, W),
    uint8 or float in [0, 1], or a tensor of the same kinds with its channels first; a caption is a text or a list of
    texts. Rows are taken one by one. Nothing is lost of files and bytes; of a Pillow image the PNG keeps transparency
    and 16 bits, upright and without metadata; float values, and modes that PNG has not (CMYK, F), become the 8-bit RGB
    that `avse.images.read_image` makes of them.

    A picture in two splits, by equal content or ``image_id``, stays in the one that measures (test before val before
    train, the first of two others); its rows in the other are left out and listed, as all that cannot be used.

    Args:
        source: ``datasets.Dataset``, ``IterableDataset`` or ``DatasetDict``; a map-style or iterable dataset of torch;
            or any iterable: of mappings, or of pairs (picture, caption). A mapping of these is one source a split.
        out: The folder.
        image: The column of pictures, where rows are mappings.
        text: The column of captions.
        split: The column that names the split; None: a mapping's keys, or none: assigned by a hash of the content.
        image_id: A column whose equal values say that rows have one picture, the first row's; None and NaN say nothing.
        force: Replace what is there.

    Returns:
        The counts of ``pictures``, ``captions`` and ``splits`` (pictures of each) that `load_dataset` finds, and
        ``skipped``: row and reason of each picture or caption left out.

    Raises:
        FileExistsError: ``out`` holds something and not ``force``.
        ValueError: A column that is not there (those there are named), a caption that is no text, a split without a
            name, or a split (or all) of which no pair is left.
    """
    out = Path(out)
    if not force and is_taken(out):
        raise FileExistsError(f"{out} holds something: name another folder, or replace it with force=True")
    columns = {"image": image, "text": text, "split": split, "image_id": image_id}
    if isinstance(source, Mapping) and split is not None:
        raise ValueError(f"split={split!r} does not go with a mapping, whose keys {list(source)} are the splits")
    parts = source if isinstance(source, Mapping) else {None: source}

    def fill(folder: Path) -> dict[str, Any]:
        return _Copy(folder, columns).run(parts)

    return build_folder(out, {"kind": "pairs", **columns}, fill, force=force)


@dataclass
class _Line(Entry):
    """A picture in one split, and the rows it comes from."""

    rows: list[str] = field(default_factory=list)


class _Copy:
    """The folder on its way: what was copied, and the lines of captions.jsonl."""

    def __init__(self, folder: Path, columns: Mapping[str, str | None]) -> None:
        self._folder, self._columns = folder, columns
        self._names: dict[str, str] = {}  # of copied pictures, by the digest of their content
        self._ids: dict[str, str] = {}
        self._lines: dict[str, dict[str | None, _Line]] = {}  # by picture and split
        self._skipped: dict[str | None, list[Skip]] = {}  # by split
        (folder / "images").mkdir()

    def run(self, parts: Mapping[Any, Any]) -> dict[str, Any]:
        """Copy everything and return the counts."""
        for part, source in parts.items():
            split = None if part is None else _split_name(part, "the mapping")
            rows = tqdm(_rows(source, self._columns["image"]), desc=f"copying {part or 'pairs'}", unit="row")
            for number, row in enumerate(rows):
                where = f"{part}, row {number}" if part is not None else f"row {number}"
                self._add(row, split, where)
        kept = self._settled()
        self._check({line.split for line in kept})
        write_text(self._folder / _CAPTIONS, "".join(map(_json, kept)))
        skipped = [(skip.name, skip.reason) for skips in self._skipped.values() for skip in skips]
        if skipped:
            log.warning("%d pictures or captions were left out; the first, %s: %s", len(skipped), *skipped[0])
        found = load_splits(find_layout(self._folder))
        return {
            "pictures": sum(data.num_images for data in found.values()),
            "captions": sum(data.num_pairs for data in found.values()),
            "splits": {split: data.num_images for split, data in found.items()},
            "skipped": skipped,
        }

    def _settled(self) -> list[_Line]:
        """Return each picture once, in the split that measures; the rows of its other splits are skipped."""
        kept = []
        for name, lines in self._lines.items():
            kept.append(best := max(lines.values(), key=rank))
            for line in lines.values():
                for row in line.rows if line is not best else ():
                    self._skip(
                        line.split,
                        row,
                        f"in two splits: {name} stays in {best.split!r} ({best.where}), not in {line.split!r}",
                    )
        return kept

    def _check(self, kept: set[str | None]) -> None:
        """Raise where a split of the source, or all of it, has no pair left."""
        empty = [split for split in self._skipped if split is not None and split not in kept]
        if not empty and kept:
            return
        where = f"split {empty[0]!r}" if empty else "the source"
        skips = self._skipped[empty[0]] if empty else self._skipped.get(None, [])
        first = f"; the first, {skips[0].name}: {skips[0].reason}" if skips else ""
        raise ValueError(f"no usable pair in {where}, {len(skips):,} pictures or captions were left out{first}")

    def _skip(self, split: str | None, where: str, reason: str) -> None:
        self._skipped.setdefault(split, []).append(Skip(where, reason))

    def _add(self, row: Any, split: str | None, where: str) -> None:
        if isinstance(row, OSError):
            self._skip(split, where, f"cannot be read: {row}")
            return
        picture, given, named, key = self._fields(row, where)
        if self._columns["split"] is not None:
            split = _split_name(named, where)
        captions = []
        for text in given or [""]:
            if not is_unicode(text):
                self._skip(split, where, f"half a character (a lone surrogate) in the caption: {text!a:.80}")
            elif text.strip():
                captions.append(text)
            else:
                self._skip(split, where, "empty caption")
        if not is_unicode(key or ""):
            self._skip(split, where, f"half a character (a lone surrogate) in the id: {key!a:.80}")
        elif captions:
            self._keep(picture, captions, split, key, where)

    def _keep(self, picture: Any, captions: list[str], split: str | None, key: str | None, where: str) -> None:
        try:
            if key is None:
                name = self._copy(picture)
            elif key in self._ids:
                name = self._ids[key]
            else:
                name = self._ids[key] = self._copy(picture)
        except (OSError, ValueError) as error:
            reason = error.reason if isinstance(error, ImageError) else getattr(error, "strerror", None)
            self._skip(split, where, reason or str(error))
            return
        line = self._lines.setdefault(name, {}).setdefault(split, _Line(name, where, split))
        line.captions += captions
        line.rows.append(where)
        if key is not None:
            line.record["id"] = key

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
        texts = ["" if _missing(text) else text for text in texts]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{where}: the caption must be a text or a list of texts, found {shown(values['text'])}")
        key = values.get("image_id")
        return values["image"], texts, values.get("split"), None if _missing(key) else str(key)

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
    """Return the bytes of a picture's file, or of a PNG of its pixels.

    Raises:
        ImageError, OSError, ValueError: It cannot be read.
    """
    if isinstance(picture, Mapping) and {"bytes", "path"} <= picture.keys():  # an undecoded one of datasets
        picture = picture["path"] if picture["bytes"] is None else picture["bytes"]
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str | Path):
        if Path(picture).exists() and not Path(picture).is_file():  # /dev/zero has no end
            raise ImageError(f"{picture}", "no regular file")
        return Path(picture).read_bytes()
    if hasattr(picture, "read"):  # an open file
        with suppress(AttributeError, io.UnsupportedOperation):
            picture.seek(0)
        if not isinstance(data := picture.read(), bytes):
            raise ImageError("file", 'opened for reading text: open it with "rb"')
        return data
    if hasattr(picture, "detach"):  # a tensor
        picture = picture.detach().cpu()
        picture = (picture.float() if picture.is_floating_point() else picture).numpy()  # numpy has no bfloat16
        picture = np.moveaxis(picture, 0, -1) if picture.ndim == 3 else picture
        picture = picture[..., 0] if picture.ndim == 3 and picture.shape[-1] == 1 else picture
    if not isinstance(picture, Image.Image | np.ndarray):
        raise ImageError("picture", f"neither a path, bytes, an open file, an image nor an array: {kind_of(picture)}")
    image = read_image(picture)
    if isinstance(picture, Image.Image):
        whole = turned(picture)
        whole = whole.convert("I;16") if whole.mode == "I" else whole
        if whole.mode in _PNG_MODES:
            image = whole
            image.info = {name: value for name, value in picture.info.items() if name == "transparency"}
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _missing(value: Any) -> bool:
    """Tell whether a value stands for none: None, NaN, or what else pandas writes for it."""
    nan = isinstance(value, float | np.floating) and np.isnan(value)
    return value is None or bool(nan) or type(value).__name__ in ("NAType", "NaTType")


def _json(line: _Line) -> str:
    """Return the line of captions.jsonl."""
    split = {} if line.split is None else {"split": line.split}
    said = {"image": line.image, "captions": line.captions, **split, **line.record}
    return json.dumps(said, ensure_ascii=False) + "\n"


def _split_name(name: Any, where: str) -> str:
    """Return our name of a split: validation and dev are val."""
    if not isinstance(name, str) or name in ("", "all") or not is_unicode(name):
        raise ValueError(f"{where}: a split must have a name other than all, found {shown(name)}")
    return next((own for own, others in ALIASES.items() if name.lower() in (own, *others)), name)
