"""Pairs of pictures and sentences, one split of them: what every trainer, evaluation and demo takes.

Knows neither files of captions nor encoders: paths, texts and which text belongs to which picture.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

SPLITS = ("train", "val", "test")
FEATURE_TYPES = ("<f4", "<f2")
_LARGEST = 1 << 40
"""Of any size of an array file: numpy's own arithmetic ends the process on some that are larger."""


@dataclass(frozen=True)
class Skip:
    """Something that was left out: its name and why; reasons of one kind share what stands before the colon."""

    name: str
    reason: str

    @property
    def kind(self) -> str:
        """The reason without its particulars, for counts."""
        return self.reason.split(":")[0]


@dataclass(frozen=True)
class FeatureRows:
    """Region features computed beforehand: a file of them, and which row belongs to each image of a split.

    Attributes:
        path: An ``.npy`` file of shape (rows, G, W), float32 or float16.
        rows: (N,) int64, for each image its row in the file.
    """

    path: Path
    rows: NDArray[np.int64]

    def open(self) -> NDArray[np.floating[Any]]:
        """Return the whole file, (rows, G, W), mapped and not read: float32, or float16 where the file has that.

        Raises:
            ValueError: Not an array file, one that holds Python objects, another shape or another kind of number.
            OSError: The file is gone or cannot be mapped.
        """
        try:
            shape, fortran, kind, start = _array_header(self.path)
        except OSError:
            raise
        except Exception as error:  # numpy's reader of headers raises anything on damaged files
            raise ValueError(
                f"{self.path}: no array file that can be mapped: it is cut off, or no plain array of numbers (pickled "
                "objects are refused); save it anew by numpy.save as float32 or float16"
            ) from error
        if len(shape) != 3 or kind.str not in FEATURE_TYPES:
            raise ValueError(
                f"{self.path}: an array (images, regions, width) of float32 or float16 is wanted, {shape} {kind} found"
            )
        wanted, held = math.prod(shape) * kind.itemsize, self.path.stat().st_size - start
        if not all(0 <= size <= _LARGEST for size in shape) or wanted > held:
            raise ValueError(
                f"{self.path}: no array file that can be mapped: {shape} {kind} takes {wanted:,} bytes, {held:,} found"
            )
        if not wanted:
            return np.zeros(shape, kind)
        return np.memmap(self.path, kind, "r", start, shape, "F" if fortran else "C")


def _array_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Read shape, whether the first index runs fastest, kind, and where the numbers of an ``.npy`` file begin.

    Raises:
        OSError, Exception: what numpy raises where it is none; ValueError of Python objects.
    """
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    with open(path, "rb") as stream:
        shape, fortran, kind = readers[npy.read_magic(stream)](stream)
        if kind.hasobject:
            raise ValueError("Python objects")
        return shape, fortran, kind, stream.tell()


@dataclass(frozen=True)
class PairDataset:
    """One split: N images with their M captions.

    Attributes:
        name: What the data set is called in tables.
        split: The split's name; "all" for all of them.
        root: The folder that the image ids are relative to.
        image_ids: N distinct ids: the picture's path relative to ``root``, with forward slashes.
        image_paths: N paths, in the order of ``image_ids``.
        captions: M texts; the captions of one image stand together.
        text_to_image: (M,) int64, for each caption the position of its image.
        skipped: What was left out, and why.
        records: N, the further fields of the image's line (title, tags, parts with boxes, ...).
        notes: What was decided while loading, for `summary`.
        features: Where the images are no pictures but rows of features; then each of ``image_paths`` is that file, and
            the ids are what the data set calls its images.
    """

    name: str
    split: str
    root: Path
    image_ids: tuple[str, ...]
    image_paths: tuple[Path, ...]
    captions: tuple[str, ...]
    text_to_image: NDArray[np.int64]
    skipped: tuple[Skip, ...]
    records: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()
    features: FeatureRows | None = None

    def __post_init__(self) -> None:
        """Refuse fields that do not fit one another.

        Raises:
            ValueError: Lengths that disagree, an id twice, or a caption of an image that is not there.
        """
        images, texts = len(self.image_ids), len(self.captions)
        if not images == len(self.image_paths) == len(self.records) or texts != len(self.text_to_image):
            raise ValueError(
                f"{images} ids, {len(self.image_paths)} paths, {len(self.records)} records; "
                f"{texts} captions, {len(self.text_to_image)} positions: each group must agree"
            )
        if self.features is not None and len(self.features.rows) != images:
            raise ValueError(f"{images} images, {len(self.features.rows)} rows of features: one row an image is wanted")
        if len(set(self.image_ids)) != images:
            twice = Counter(self.image_ids).most_common(1)[0][0]
            raise ValueError(f"image id {twice!r} stands twice")
        if texts and not (0 <= self.text_to_image.min() and self.text_to_image.max() < images):
            raise ValueError(f"text_to_image must lie in 0..{images - 1}, found {self.text_to_image.max()}")

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.image_ids)

    @property
    def num_pairs(self) -> int:
        """M, the number of captions."""
        return len(self.captions)

    @cached_property
    def _texts_of(self) -> tuple[tuple[int, ...], ...]:
        texts: list[list[int]] = [[] for _ in self.image_ids]
        for text, image in enumerate(self.text_to_image.tolist()):
            texts[image].append(text)
        return tuple(map(tuple, texts))

    def captions_of(self, i: int) -> tuple[str, ...]:
        """Return the captions of image ``i``."""
        return tuple(self.captions[text] for text in self._texts_of[i])

    def subset(self, indices: Sequence[int]) -> PairDataset:
        """Return the images at ``indices``, in that order, with their captions.

        Raises:
            ValueError: An index twice.
            IndexError: An index out of range.
        """
        chosen = [range(self.num_images)[int(i)] for i in indices]
        texts = [self._texts_of[i] for i in chosen]
        owners = [position for position, of_image in enumerate(texts) for _ in of_image]
        features = self.features and replace(self.features, rows=self.features.rows[chosen])
        return replace(
            self,
            image_ids=tuple(self.image_ids[i] for i in chosen),
            image_paths=tuple(self.image_paths[i] for i in chosen),
            captions=tuple(self.captions[text] for of_image in texts for text in of_image),
            text_to_image=np.array(owners, np.int64),
            records=tuple(self.records[i] for i in chosen),
            features=features,
        )

    def first_captions(self, count: int) -> PairDataset:
        """Return the same images with at most the first ``count`` captions of each, as the field's protocols take five.

        A record's ``caption_ids`` are cut likewise.

        Raises:
            ValueError: ``count`` is less than 1.
        """
        if count < 1:
            raise ValueError(f"the first {count} captions: a count of at least 1 is wanted")
        kept = [text for of_image in self._texts_of for text in of_image[:count]]
        records = [
            {**record, "caption_ids": record["caption_ids"][:count]} if "caption_ids" in record else record
            for record in self.records
        ]
        return replace(
            self,
            captions=tuple(self.captions[text] for text in kept),
            text_to_image=self.text_to_image[kept],
            records=tuple(records),
        )

    def first_by_hash(self, count: int) -> PairDataset:
        """Return at most ``count`` images, those whose ids have the smallest SHA-256: the same everywhere."""
        if count >= self.num_images:
            return self
        order = sorted(range(self.num_images), key=lambda i: hashlib.sha256(self.image_ids[i].encode()).digest())
        return self.subset(sorted(order[:count]))

    def fingerprint(self) -> str:
        """Return the SHA-256 of ids and captions, in order; pictures' contents are not part of it."""
        digest = hashlib.sha256()
        for i, image_id in enumerate(self.image_ids):
            for part in (image_id, *self.captions_of(i)):
                data = part.encode()
                digest.update(len(data).to_bytes(8, "little") + data)
            digest.update(b"\xff" * 8)
        return digest.hexdigest()

    def summary(self) -> str:
        """Return the counts in a few lines: images, captions, what was skipped and why."""
        lines = [f"{self.name} ({self.split}): {self.num_images:,} images, {self.num_pairs:,} captions"]
        lines += self.notes
        lines += [f"skipped {n:,}: {kind}" for kind, n in Counter(skip.kind for skip in self.skipped).most_common()]
        return "\n".join(lines)


def split_by_hash(name: str) -> str:
    """Return the split of a name for good: by its SHA-256, 80 / 10 / 10 % train / val / test.

    >>> split_by_hash("a.jpg") == split_by_hash("a.jpg")
    True
    """
    share = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"
