"""What an index keeps of a picture, and the pictures on their way into one. Knows no store and no encoder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from PIL import ExifTags, Image

from avse.images import ImageError, open_image
from avse.index.contract import Blocks, Payload, Skipped

UPLOADED = "uploaded"
"""Field of the payload of a picture that came over the network and lies below the index's folder."""

_SHA256 = re.compile("[0-9a-f]{64}")


class Picture(NamedTuple):
    """A picture that could be read: id (its path below the root), blocks (P, C) and payload."""

    id: str
    blocks: Blocks
    payload: Payload


def embed_pictures(
    encode: Callable[[list[Any]], Blocks], batch: Sequence[tuple[str, Path]]
) -> tuple[list[Picture], list[Skipped]]:
    """Embed the pictures of (id, path) together; where one cannot be read, one by one, to find out which."""
    try:
        blocks = encode([path for _, path in batch])
        return [Picture(*item[:1], row, picture_payload(*item)) for item, row in zip(batch, blocks, strict=True)], []
    except (ImageError, OSError) as error:
        if len(batch) == 1:
            return [], [Skipped(batch[0][0], reason_of(error))]
    parts = [embed_pictures(encode, [item]) for item in batch]
    return [picture for found, _ in parts for picture in found], [skip for _, lost in parts for skip in lost]


def reason_of(error: Exception) -> str:
    """Say why a picture cannot be read, without its name."""
    if isinstance(error, ImageError):
        return error.reason
    return (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"


def picture_payload(name: str, path: Path, opened: Image.Image | None = None) -> Payload:
    """Return what an index keeps of a picture that could be read.

    That is path, paths, name, folder, width, height (pixels, upright), bytes, modified (UTC), and where its EXIF block
    says so, date (as ISO 8601, of the camera's clock) and year. ``opened`` is the file as `open_image` gave it, where
    someone has it; only its header is read.
    """
    with open_image(path) if opened is None else nullcontext(opened) as image:
        width, height = image.size
        turned, taken = _exif(image)
    facts = path.stat()
    size = {"width": height if turned else width, "height": width if turned else height, "bytes": facts.st_size}
    dated = {} if taken is None else {"date": taken.isoformat(), "year": taken.year}
    return {**path_payload(name, [name]), **size, "modified": iso_time(facts.st_mtime_ns // 1000), **dated}


def path_payload(name: str, paths: list[str]) -> Payload:
    """Return the part of a payload that says where a picture lies: path, its name and folder, and all paths."""
    folder, _, last = name.rpartition("/")
    return {"path": name, "paths": paths, "name": last, "folder": folder}


def is_sha256(text: str) -> bool:
    """Tell whether it is a SHA-256 as this house writes it: 64 lower-case hexadecimal digits."""
    return _SHA256.fullmatch(text) is not None


def upload_file(folder: Path, content: str) -> Path:
    """Return where the index in ``folder`` keeps an uploaded picture of this SHA-256.

    Raises:
        ValueError: It is none.
    """
    if not is_sha256(content):
        raise ValueError(f"{content!r} is no SHA-256: 64 hexadecimal digits are wanted")
    return folder / "uploads" / content[:2] / content


def is_upload(payload: Payload) -> bool:
    """Tell whether an entry is of an uploaded picture; others may have a field of that name, of their own."""
    content = payload.get("sha256")
    return payload.get(UPLOADED) is True and isinstance(content, str) and is_sha256(content)


def picture_file(folder: Path | None, source: Path | None, payload: Payload) -> Path | None:
    """Return where the picture of an entry lies (or lay); None where that is not known.

    Args:
        folder: The index's, for pictures that were uploaded.
        source: The one that paths are relative to.
        payload: The entry's.
    """
    if is_upload(payload):
        return None if folder is None else upload_file(folder, payload["sha256"])
    if source is None or not isinstance(path := payload.get("path"), str):
        return None
    found = Path(os.path.normpath(source / path))
    return found if found.is_relative_to(source) else None


def iso_time(microseconds: int) -> str:
    """Return microseconds since 1970 as ISO 8601 in UTC, with all six digits; empty where no calendar has that time.

    >>> iso_time(1_560_000_000_000_001)
    '2019-06-08T13:20:00.000001+00:00'
    """
    try:
        return datetime.fromtimestamp(microseconds // 1_000_000, timezone.utc).isoformat()[:19] + (
            f".{microseconds % 1_000_000:06d}+00:00"
        )
    except (ValueError, OverflowError, OSError):
        return ""


def microseconds(text: object) -> int | None:
    """Return the microseconds since 1970 that `iso_time` gave ``text`` for; None where it did not.

    >>> microseconds("2019-06-08T13:20:00.000001+00:00")
    1560000000000001
    """
    try:
        return round(datetime.fromisoformat(str(text)).replace(microsecond=0).timestamp()) * 1_000_000 + int(
            str(text)[20:26]
        )
    except ValueError:
        return None


def _exif(image: Image.Image) -> tuple[bool, datetime | None]:
    """Tell whether the picture lies on its side, and when it was taken; a damaged EXIF block says nothing."""
    turned, taken = False, None
    try:
        exif = image.getexif()
        turned = exif.get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        taken = _moment(exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal))
    except Exception:  # Pillow's reader of EXIF raises anything on damaged blocks
        pass
    return turned, taken


def _moment(value: Any) -> datetime | None:
    try:
        return datetime.strptime(str(value).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except ValueError:
        return None
