"""What is wrong with a data set: every picture is decoded, pictures that stand in two splits are found.

Says also which of the field's protocols can be measured on it. Knows no model.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from avse.data.dataset import SPLITS, FeatureRows, PairDataset, Skip
from avse.data.layouts import Layout, find_layout, load_dataset, load_splits
from avse.images import ImageError, read_image
from avse.protocols import CAPTIONS, PROTOCOLS, why_not

_THREADS = 2
"""A picture of 100 megapixels takes some 600 MB while it is decoded: no more at once."""
_SAME_BY_DESIGN = {"test", "testall"}
CLAIMS = {"flickr30k": ("flickr30k-1k",), "coco": ("coco-5k", "coco-1k")}
"""What must be possible on data that is asked for as a family."""


def check_dataset(name_or_path: str | Path, *, root: str | Path | None = None, quick: bool = False) -> dict[str, Any]:
    """Return a report on all splits of a data set.

    ``ok`` is false where a protocol that the data claims cannot be run: of data asked for as flickr30k or coco, theirs;
    of other data train, val or test without anything usable, or a test image of Karpathy's files with fewer than five
    captions.

    Keys: ``ok``, ``layout`` (``kind``, ``path``, ``family``), ``splits`` (name to ``images`` and ``captions``),
    ``notes``, ``skipped`` and ``duplicates`` (each a list of ``name`` and ``reason``; a duplicate has the same pixels
    or features as one of another split), ``problems``, and ``protocols`` (name to ``runs`` and ``why`` not).

    Args:
        name_or_path: As `load_dataset`.
        root: As `load_dataset`.
        quick: Decode no picture and read no feature: files are only looked for, duplicates found by their ids.

    Raises:
        FileNotFoundError: As `load_dataset`.
        ValueError: As `load_dataset`.
    """
    layout = find_layout(name_or_path, root)
    parts = load_splits(layout)
    if not any(part.num_images for part in parts.values()):
        load_dataset(name_or_path, root=root, split="all", check_images=False)  # says what is wrong
    skipped = [skip for part in parts.values() for skip in part.skipped]
    read: dict[str, PairDataset] = {}
    duplicates: list[Skip] = []
    first: dict[str, dict[str, str]] = defaultdict(dict)
    for split, part in parts.items():
        good = []
        for i, (image_id, digest) in enumerate(zip(part.image_ids, _digests(part, quick))):
            if isinstance(digest, ImageError):
                skipped.append(Skip(image_id, digest.reason))
                continue
            good.append(i)
            duplicates += _twins(part, image_id, first[digest], quick)
            first[digest].setdefault(split, image_id)
        read[split] = part if len(good) == part.num_images else part.subset(good)
    return {
        **_judge(layout, read),
        "notes": list(dict.fromkeys(note for part in parts.values() for note in part.notes)) + _odd_splits(parts),
        "skipped": [asdict(skip) for skip in skipped],
        "duplicates": [asdict(duplicate) for duplicate in duplicates],
    }


def _judge(layout: Layout, parts: dict[str, PairDataset]) -> dict[str, Any]:
    """Return the parts of the report that follow from what can be used."""
    why = {name: _why_not(name, parts) for name in PROTOCOLS}
    if layout.claimed:
        problems = [f"{name} cannot be run: {why[name]}" for name in CLAIMS[layout.family] if why[name]]
    else:
        what = "features" if any(part.features for part in parts.values()) else "picture"
        usable = {split for split, part in parts.items() if part.num_images}
        problems = [f"no usable {what} in split {split!r}" for split in SPLITS if split not in usable]
        problems += _short(parts["test"]) if layout.family and "test" in usable else []
    shapes = {split: part.features.open().shape[1:] for split, part in parts.items() if part.features}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{split} {shape[0]} x {shape[1]}" for split, shape in shapes.items())
        problems.append(f"the splits hold features of different shapes: {told}")
    names = [*SPLITS, *sorted(set(parts) - set(SPLITS))]
    counts = {name: (parts[name].num_images, parts[name].num_pairs) if name in parts else (0, 0) for name in names}
    return {
        "ok": not problems,
        "layout": {"kind": layout.kind, "path": str(layout.path), "family": layout.family},
        "splits": {name: {"images": n, "captions": m} for name, (n, m) in counts.items() if n or name in SPLITS},
        "protocols": {name: {"runs": not reason, "why": reason} for name, reason in why.items()},
        "problems": problems,
    }


def _why_not(name: str, parts: dict[str, PairDataset]) -> str:
    """Say why a protocol cannot be run; MS-COCO's 5,000 test images are those of testall where there is one."""
    test = parts.get("testall" if name not in ("plain", "flickr30k-1k") and "testall" in parts else "test")
    if test is None or not test.num_images:
        return f"no usable split 'test'; there is {', '.join(split for split in parts if parts[split].num_images)}"
    return why_not(name, test)


def _odd_splits(parts: dict[str, PairDataset]) -> list[str]:
    usual = [*SPLITS, "testall"]
    return [
        f"split {split!r} is none of {', '.join(usual)}: its {part.num_images:,} images are not in any of them"
        for split, part in parts.items()
        if split not in usual
    ]


def _short(test: PairDataset) -> list[str]:
    counts = np.bincount(test.text_to_image, minlength=test.num_images)
    few = np.flatnonzero(counts < CAPTIONS).tolist()
    return [f"test image {test.image_ids[i]} has {counts[i]} captions, {CAPTIONS} are wanted" for i in few]


def _twins(part: PairDataset, image_id: str, there: dict[str, str], quick: bool) -> Iterator[Skip]:
    what = "the same id" if quick else "the same features" if part.features else "the same pixels"
    for other, twin in there.items():
        if other != part.split and {other, part.split} != _SAME_BY_DESIGN:
            yield Skip(image_id, f"in {part.split}, {what} as {twin} in {other}")


def _digests(part: PairDataset, quick: bool) -> Iterator[str | ImageError]:
    """Yield for each image of a part what is equal for equal images, or why it cannot be read."""
    if quick:  # rows of features without ids are only numbers, which say nothing of another file's rows
        numbered = part.features is not None and not any("id" in record for record in part.records)
        yield from (f"{part.split}: {image_id}" if numbered else image_id for image_id in part.image_ids)
        return
    unit = "row" if part.features else "picture"
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = pool.map(_rows_of(part.features) if part.features else _pixels, _places(part))
        yield from tqdm(digests, total=part.num_images, desc=f"{part.split} {unit}s", unit=unit)


def _places(part: PairDataset) -> Iterable[Any]:
    return part.features.rows.tolist() if part.features else part.image_paths


def _rows_of(source: FeatureRows) -> Callable[[int], str | ImageError]:
    features = source.open()

    def digest(row: int) -> str | ImageError:
        values = np.ascontiguousarray(features[row])
        if not np.isfinite(values).all():
            return ImageError(str(source.path), f"not finite: row {row} holds NaN or infinity")
        return hashlib.sha256(values.tobytes()).hexdigest()

    return digest


def _pixels(path: Path) -> str | ImageError:
    try:
        image = read_image(path)
    except ImageError as error:
        return error
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
