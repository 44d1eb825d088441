"""Pictures on their way into an index: named, embedded in batches, with their payloads; broken ones are set aside.

The encoder reads the files itself, so that a stored row is the row ``encode_images`` gives for that path. Knows no
store.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image

from avse.images import ImageError
from avse.index.contract import Blocks, Payload, Skipped, is_unicode


class Picture(NamedTuple):
    """A picture that could be read: id (its path below the root), blocks (P, C) and payload."""

    id: str
    blocks: Blocks
    payload: Payload


def picture_ids(paths: Sequence[Path], root: Path) -> tuple[dict[str, Path], list[Skipped]]:
    """Return the paths under their ids, relative posix paths, and those whose name is not valid unicode.

    Raises:
        ValueError: A path does not lie below ``root``.
    """
    named: dict[str, Path] = {}
    skipped = []
    for path in paths:
        absolute = path.parent.resolve() / path.name
        if not absolute.is_relative_to(root):
            raise ValueError(f"{path} does not lie in {root}, the folder of this index: make another index for it")
        name = absolute.relative_to(root).as_posix()
        if is_unicode(name):
            named[name] = absolute
        else:
            skipped.append(Skipped(name.encode("utf-8", "backslashreplace").decode(), "the name is not valid unicode"))
    return named, skipped


def embed_pictures(
    encode: Callable[[list[Any]], Blocks], batch: Sequence[tuple[str, Path]]
) -> tuple[list[Picture], list[Skipped]]:
    """Embed the pictures of (id, path) together; where one cannot be read, one by one, to find out which."""
    try:
        blocks = encode([path for _, path in batch])
        return [Picture(*item[:1], row, picture_payload(*item)) for item, row in zip(batch, blocks, strict=True)], []
    except (ImageError, OSError) as error:
        if len(batch) == 1:
            reason = error.reason if isinstance(error, ImageError) else error.strerror or str(error)
            return [], [Skipped(batch[0][0], reason)]
    parts = [embed_pictures(encode, [item]) for item in batch]
    return [picture for found, _ in parts for picture in found], [skip for _, lost in parts for skip in lost]


def picture_payload(name: str, path: Path) -> Payload:
    """Return what an index keeps of a picture that could be read: path, name, folder, width, height, bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the encoder kept to its own cap
        with Image.open(path) as image:
            width, height = image.size
            try:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            except Exception:  # a damaged EXIF block says nothing
                turned = False
    folder, _, last = name.rpartition("/")
    size = {"width": height if turned else width, "height": width if turned else height, "bytes": path.stat().st_size}
    return {"path": name, "name": last, "folder": folder, **size}
