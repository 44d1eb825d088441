"""Open Clip Art from its two Debian packages: real pictures with real words, in the public domain.

``build_openclipart`` obtains and unpacks the packages, pairs every SVG's metadata with the PNG of the same path, keeps
the texts that can tell pictures apart, and writes ``images/``, ``captions.jsonl`` and ``skipped.json``. Knows no model.
The words are as their authors wrote them: mostly English, some Italian, French and Spanish.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from avse.data.build import build_folder
from avse.data.clipmeta import (
    ClipMeta,
    clean_tags,
    is_public_domain,
    read_metadata,
    same,
    texts_of,
    title_group,
)
from avse.data.dataset import SPLITS, Skip, split_by_hash
from avse.data.debian import DebianError, download_packages, find_packages, unpack_package
from avse.files import sha256, write_json, write_text
from avse.images import ImageError, check_image, read_image

log = logging.getLogger(__name__)

PACKAGES = ("openclipart-svg", "openclipart-png")
TREE = "usr/share/openclipart"
MARGIN = 0.02
"""White on each side of the picture, as a share of it; transparent margins are cut off first."""
_VERSION = 1
MOST_OWNERS = 5
"""A text owned by more pictures than this tells none of them apart and is dropped."""


class OpenClipartUnavailable(OSError):
    """The packages cannot be had here; the message says why and what to do instead."""


@dataclass
class Picture:
    """One distinct picture: the paths of its copies in the collection, their metadata, and what is said of it."""

    sources: list[str]
    metas: list[ClipMeta]
    texts: list[str] = field(default_factory=list)
    split: str = ""

    @property
    def name(self) -> str:
        """The path of the first copy, without suffix."""
        return self.sources[0]

    @property
    def image(self) -> str:
        """The path of the picture in the data set."""
        return f"images/{self.name}.png"

    def groups(self) -> list[str]:
        """The title groups that must not be parted by a split."""
        return [title_group(meta.title) or source for meta, source in zip(self.metas, self.sources)]


def build_openclipart(out: Path, *, size: int = 256, debs: Path | None = None, force: bool = False) -> dict[str, Any]:
    """Build the data set in ``out`` and return its counts; a complete one of this size is reused.

    Args:
        out: The folder to make: ``images/``, ``captions.jsonl``, ``skipped.json`` (skips by name), ``dataset.json``.
        size: Side of the square pictures in pixels; what is not square is padded with white.
        debs: A folder that holds the two .deb files, for machines without network.
        force: Build anew and replace what is in ``out``.

    Raises:
        OpenClipartUnavailable: The packages cannot be had or unpacked.
        FileExistsError: ``out`` holds something else, or pictures of another size, and ``force`` is not set.
        ValueError: ``size`` is below 32.
    """
    if size < 32:
        raise ValueError(f"pictures of {size} px asked for: at least 32 are made")

    def make(folder: Path) -> dict[str, Any]:
        with TemporaryDirectory(prefix=".packages-", dir=folder) as packages:
            found = _unpack(Path(packages), debs)
            return make_openclipart(Path(packages) / TREE, folder, size=size) | {"packages": found}

    settings = {"kind": "openclipart", "version": _VERSION, "size": size}
    return build_folder(Path(out), settings, make, force=force)


def make_openclipart(tree: Path, out: Path, *, size: int) -> dict[str, Any]:
    """Write ``out`` from the unpacked collection ``tree`` (its ``svg`` and ``png`` folders) and return the counts."""
    found, skipped = _read_all(tree)
    texts = _Texts(found)
    mute = f"no text of its own: none, or only such as more than {MOST_OWNERS} pictures have"
    skipped += [Skip(picture.name, mute) for picture in found if not texts.of(picture)]
    pictures, unseen = _render_all(tree, [picture for picture in found if texts.of(picture)], out, size)
    for picture in pictures:
        picture.texts = texts.of(picture)
    _give_splits(pictures)
    skipped = sorted(skipped + unseen, key=lambda skip: skip.name)
    write_json(out / "skipped.json", [asdict(skip) for skip in skipped])
    lines = [json.dumps(_line(picture), ensure_ascii=False) + "\n" for picture in pictures]
    write_text(out / "captions.jsonl", "".join(lines))
    return _counts(pictures, skipped, texts.owners)


def _unpack(folder: Path, debs: Path | None) -> dict[str, str]:
    try:
        files = find_packages(PACKAGES, debs) if debs is not None else download_packages(PACKAGES, folder)
        for package in files.values():
            log.info("unpacking %s", package.name)
            unpack_package(package, folder)
    except DebianError as error:
        way_out = "give a folder that holds the two .deb files by --debs, or use made scenes (avse data scenes)"
        raise OpenClipartUnavailable(f"open clip art cannot be had: {error}; {way_out}") from error
    return {package.name: sha256(package) for package in files.values()}


def _read_all(tree: Path) -> tuple[list[Picture], list[Skip]]:
    """Return the pictures with their metadata; files that are links to one PNG are copies of one picture."""
    root, pictures, skipped = tree.resolve(), dict[Path, Picture](), list[Skip]()
    paths = sorted((tree / "svg").rglob("*.svg"), key=lambda path: path.as_posix())
    for path in tqdm(paths, desc="reading titles and tags", unit="file"):
        source = path.relative_to(tree / "svg").with_suffix("").as_posix()
        png = (tree / "png" / f"{source}.png").resolve()
        if any(part.endswith("-theme") for part in source.split("/")[:-1]):
            skipped.append(Skip(source, "icon theme"))
        elif not png.is_relative_to(root) or not path.resolve().is_relative_to(root):
            skipped.append(Skip(source, "a link that leaves the collection"))
        elif not png.is_file():
            skipped.append(Skip(source, "no PNG of the same path"))
        else:
            try:
                meta = read_metadata(path.read_bytes())
            except ValueError as error:
                skipped.append(Skip(source, str(error)))
                continue
            if not is_public_domain(meta):
                skipped.append(Skip(source, f"not in the public domain: {meta.license}"))
                continue
            picture = pictures.setdefault(png, Picture([], []))
            if picture.sources:
                skipped.append(Skip(source, f"a copy, captions merged: the file of {picture.name}"))
            picture.sources.append(source)
            picture.metas.append(meta)
    if not pictures:
        raise OpenClipartUnavailable(f"{tree}: no SVG with a PNG of the same path in the unpacked packages")
    return list(pictures.values()), skipped


class _Texts:
    """What may be said of the pictures: a text with too many owners tells none of them apart."""

    def __init__(self, pictures: list[Picture]) -> None:
        self.tags = Counter(tag for picture in pictures for meta in picture.metas for tag in clean_tags(meta))
        texts = [texts_of(picture.metas, self.tags) for picture in pictures]
        self.owners = Counter(same(text) for of_picture in texts for text in of_picture)

    def of(self, picture: Picture) -> list[str]:
        """Return the picture's texts without those that more than MOST_OWNERS pictures own."""
        return [text for text in texts_of(picture.metas, self.tags) if self.owners[same(text)] <= MOST_OWNERS]


def _render_all(tree: Path, pictures: list[Picture], out: Path, size: int) -> tuple[list[Picture], list[Skip]]:
    """Write the pictures; those that come out with the same pixels are merged into the first of them."""

    def one(picture: Picture) -> str | ImageError:
        try:
            return _render(tree / "png" / f"{picture.name}.png", out / picture.image, size)
        except ImageError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow decodes, resizes and encodes outside the GIL
        results = list(tqdm(pool.map(one, pictures), total=len(pictures), desc="pictures", unit="picture"))
    kept: dict[str, Picture] = {}
    skipped = []
    for picture, result in zip(pictures, results):
        if isinstance(result, ImageError):
            skipped.append(Skip(picture.name, result.reason))
        elif (first := kept.setdefault(result, picture)) is not picture:
            skipped.append(Skip(picture.name, f"a copy, captions merged: the pixels of {first.name}"))
            first.sources += picture.sources
            first.metas += picture.metas
            (out / picture.image).unlink()
    return list(kept.values()), skipped


def _render(png: Path, target: Path, size: int) -> str:
    """Write a picture without its transparent margins at the middle of a white square; return its pixels' digest."""
    check_image(png)
    with Image.open(png) as raw:
        image = read_image(raw).crop(raw.convert("RGBA").getchannel("A").getbbox())
    scale = size * (1 - 2 * MARGIN) / max(image.size)
    fitted = image.resize((_scaled(image.width, scale), _scaled(image.height, scale)), Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size), "white")
    square.paste(fitted, ((size - fitted.width) // 2, (size - fitted.height) // 2))
    if np.asarray(square).min() == 255:
        raise ImageError(png.name, "nothing to be seen on white")
    target.parent.mkdir(parents=True, exist_ok=True)
    square.save(target)
    return hashlib.sha256(square.tobytes()).hexdigest()


def _scaled(side: int, scale: float) -> int:
    return max(1, round(side * scale))


def _give_splits(pictures: list[Picture]) -> None:
    """Join pictures that share a title group, directly or through others, and split by the smallest group name."""
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        while parent.setdefault(group, group) != group:
            group = parent[group]
        return group

    for picture in pictures:
        first, *others = sorted(map(root, picture.groups()))
        for other in others:
            parent[root(other)] = root(first)
    members: dict[str, list[str]] = defaultdict(list)
    for group in parent:
        members[root(group)].append(group)
    for picture in pictures:
        picture.split = split_by_hash(min(members[root(picture.groups()[0])]))


def _line(picture: Picture) -> dict[str, Any]:
    return {
        "image": picture.image,
        "captions": picture.texts,
        "split": picture.split,
        "title": picture.metas[0].title,
        "tags": list(dict.fromkeys(tag for meta in picture.metas for tag in clean_tags(meta))),
        "folder": picture.name.rpartition("/")[0],
        "sources": [f"svg/{source}.svg" for source in picture.sources],
    }


def _counts(pictures: list[Picture], skipped: list[Skip], owners: Counter[str]) -> dict[str, Any]:
    texts = [same(text) for picture in pictures for text in picture.texts]
    times = Counter(texts)
    return {
        "pictures": len(pictures),
        "captions": len(texts),
        "splits": {split: sum(picture.split == split for picture in pictures) for split in SPLITS},
        "captions_shared": round(sum(times[text] > 1 for text in texts) / max(1, len(texts)), 4),
        "texts_dropped": sum(count > MOST_OWNERS for count in owners.values()),
        "skipped": dict(Counter(skip.kind for skip in skipped).most_common()),
    }
