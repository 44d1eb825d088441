"""Pictures on their way into an index: read safely, in batches of bounded memory, with their payloads.

Knows no model and no store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from avse.images import ImageError, read_image
from avse.index.contract import Payload, Skipped, is_unicode

MAX_BATCH_PIXELS = 64_000_000
"""A batch is closed when its pictures reach this many pixels (192 MB of RGB), however few they are."""


class Picture(NamedTuple):
    """A picture that could be read: id (its path below the root), pixels and payload."""

    id: str
    image: Image.Image
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


def read_batches(named: dict[str, Path], size: int) -> Iterator[tuple[list[Picture], list[Skipped]]]:
    """Yield batches of at most ``size`` readable pictures, each with what was skipped on the way."""
    batch: list[Picture] = []
    skipped: list[Skipped] = []
    pixels = 0
    for name, path in named.items():
        try:
            image = read_image(path)
            batch.append(Picture(name, image, _payload(name, path, image)))
            pixels += image.width * image.height
        except ImageError as error:
            skipped.append(Skipped(name, error.reason))
        except OSError as error:
            skipped.append(Skipped(name, error.strerror or str(error)))
        if len(batch) >= size or pixels >= MAX_BATCH_PIXELS:
            yield batch, skipped
            batch, skipped, pixels = [], [], 0
    yield batch, skipped


def _payload(name: str, path: Path, image: Image.Image) -> Payload:
    folder, _, last = name.rpartition("/")
    size = {"width": image.width, "height": image.height, "bytes": path.stat().st_size}
    return {"path": name, "name": last, "folder": folder, **size}
