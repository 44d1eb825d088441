"""What is wrong with a data set: every picture is decoded, and pictures that stand in two splits are found."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from avse.data.captions import load_dataset
from avse.data.dataset import SPLITS, Skip
from avse.images import ImageError, read_image

_THREADS = 2
"""A picture of 100 megapixels takes some 600 MB while it is decoded: no more at once."""


def check_dataset(path: str | Path, *, root: str | Path | None = None) -> dict[str, Any]:
    """Return a report on all splits of a data set; ``ok`` is false when train, val or test has no usable picture.

    Keys: ``ok``, ``splits`` (name to ``images`` and ``captions``), ``notes``, ``skipped`` and ``duplicates`` (each a
    list of ``name`` and ``reason``; a duplicate has the same pixels as a picture of another split), ``problems``.

    Raises:
        FileNotFoundError: As `load_dataset`.
        ValueError: As `load_dataset`.
    """
    data = load_dataset(path, root=root, split="all", check_images=False)
    with ThreadPoolExecutor(_THREADS) as pool:
        digests = list(
            tqdm(pool.map(_digest, data.image_paths), total=data.num_images, desc="pictures", unit="picture")
        )
    skipped = list(data.skipped)
    images, captions = Counter[str](), Counter[str]()
    first: dict[str, dict[str, str]] = defaultdict(dict)
    duplicates = []
    for i, (image_id, digest) in enumerate(zip(data.image_ids, digests)):
        split = data.records[i]["split"]
        if isinstance(digest, ImageError):
            skipped.append(Skip(image_id, digest.reason))
            continue
        images[split] += 1
        captions[split] += len(data.captions_of(i))
        for other, twin in first[digest].items():
            if other != split:
                duplicates.append(Skip(image_id, f"in {split}, the same pixels as {twin} in {other}"))
        first[digest].setdefault(split, image_id)
    problems = [f"no usable picture in split {split!r}" for split in SPLITS if not images[split]]
    names = [*SPLITS, *sorted(set(images) - set(SPLITS))]
    return {
        "ok": not problems,
        "splits": {name: {"images": images[name], "captions": captions[name]} for name in names},
        "notes": list(data.notes),
        "skipped": [asdict(skip) for skip in skipped],
        "duplicates": [asdict(duplicate) for duplicate in duplicates],
        "problems": problems,
    }


def _digest(path: Path) -> str | ImageError:
    try:
        image = read_image(path)
    except ImageError as error:
        return error
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
