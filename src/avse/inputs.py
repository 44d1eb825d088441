"""What a model eats: pictures of a data set as pixels or cached grids, captions as ids or cached tokens.

The trainer and the evaluation ask for batches by row number and need not know which of the two they get.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from avse.data import PairDataset, Skip
from avse.encoders import ImageEncoder, TextEncoder
from avse.features import FeatureCache, text_tokens
from avse.images import ImageError, read_image, to_pixels
from avse.model import AVSE

Rows = Sequence[int] | NDArray[np.int64]
Augment = Callable[[Image.Image, np.random.Generator], Image.Image]


class ImageInputs(Protocol):
    """Pictures of a data set, by row."""

    kept: np.ndarray
    """(n,) int64 rows of the data set that can be read; a batch names rows of these."""
    skipped: tuple[Skip, ...]

    def batch(self, rows: Rows, random: np.random.Generator | None = None) -> Tensor:
        """Return pixels (B, 3, H, W) or features (B, G, W), float32; `random` augments."""
        ...


class PixelInputs:
    """Pictures decoded when they are asked for, by a few threads.

    All are decoded once at the start: one that cannot be read is listed before training, not met in its middle.
    """

    def __init__(
        self, encoder: ImageEncoder, dataset: PairDataset, *, workers: int = 2, augment: Augment | None = None
    ) -> None:
        self.encoder, self.augment = encoder, augment
        self.pool = ThreadPoolExecutor(max(1, workers))
        bar = tqdm(dataset.image_paths, desc=f"checking {dataset.split} pictures", unit="picture", leave=False)
        problems = list(self.pool.map(_problem, bar))
        self.kept = np.array([row for row, problem in enumerate(problems) if problem is None], dtype=np.int64)
        self.skipped = tuple(
            Skip(dataset.image_ids[row], problem) for row, problem in enumerate(problems) if problem is not None
        )
        self.paths = [dataset.image_paths[row] for row in self.kept]

    def batch(self, rows: Rows, random: np.random.Generator | None = None) -> Tensor:
        """Return pixels (B, 3, H, W)."""
        seeds = [None] * len(rows) if random is None else [int(s) for s in random.integers(1 << 62, size=len(rows))]
        return torch.from_numpy(np.stack(list(self.pool.map(self._load, [self.paths[row] for row in rows], seeds))))

    def _load(self, path: Path, seed: int | None) -> np.ndarray:
        if self.augment is None or seed is None:
            return self.encoder.load_pixels(path)
        return to_pixels(self.augment(read_image(path), np.random.default_rng(seed)), self.encoder.pixels)


class GridInputs:
    """Cached grids of a frozen encoder."""

    def __init__(
        self,
        encoder: ImageEncoder,
        dataset: PairDataset,
        cache: str | Path,
        device: torch.device,
        *,
        image_augment: bool = False,
    ) -> None:
        self.grids = FeatureCache(cache).grids(
            encoder, dataset.image_paths, dataset.image_ids, device=device, image_augment=image_augment
        )
        self.kept, self.skipped = self.grids.kept, self.grids.skipped

    def batch(self, rows: Rows, random: np.random.Generator | None = None) -> Tensor:
        """Return features (B, prefix + G, W)."""
        return self.grids.batch(rows)


class TextInputs:
    """Captions as token ids, or as the cached tokens of a frozen encoder.

    Args:
        encoder: the text encoder.
        texts: the captions that will be asked for.
        device: where a frozen encoder runs.
    """

    def __init__(self, encoder: TextEncoder, texts: Sequence[str], device: torch.device) -> None:
        self.encoder = encoder
        self.distinct = list(dict.fromkeys(texts))
        self.row = {text: row for row, text in enumerate(self.distinct)}
        self.tokens = text_tokens(encoder, self.distinct, device=device) if encoder.frozen else None

    def batch(self, texts: Sequence[str], augment: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return ids (B, L) or features (B, L, W), and the mask (B, L); `augment` masks and drops words."""
        if self.tokens is not None:
            return self.tokens.batch([self.row[text] for text in texts])
        tokens = self.encoder.tokenize(texts)
        if augment is not None:
            tokens = self.encoder.augment(tokens.input_ids, tokens.attention_mask, augment)
        return tokens.input_ids, tokens.attention_mask


@dataclass(frozen=True)
class Inputs:
    """One split, open: systems that share their encoders share it too."""

    dataset: PairDataset
    """The pictures that can be read, with their captions; rows as in `images`."""
    images: ImageInputs
    texts: TextInputs

    @property
    def skipped(self) -> tuple[Skip, ...]:
        """Everything left out, by name and reason."""
        return (*self.dataset.skipped, *self.images.skipped)


def open_inputs(
    model: AVSE,
    dataset: PairDataset,
    *,
    cache: str | Path | None = None,
    workers: int = 2,
    augment: Augment | None = None,
) -> Inputs:
    """Open a split: with a cache folder the frozen encoder's grids, otherwise pictures decoded when they are asked for.

    Raises:
        FeatureError: a cache is named, but the encoder is not frozen, samples at its input, or pictures are augmented.
        ValueError: no picture of the split can be read.
    """
    images: ImageInputs
    if cache is not None:
        images = GridInputs(model.image_encoder, dataset, cache, model.device, image_augment=augment is not None)
    else:
        images = PixelInputs(model.image_encoder, dataset, workers=workers, augment=augment)
    if not len(images.kept):
        first = images.skipped[0]
        raise ValueError(
            f"{dataset.name}, split {dataset.split}: none of {dataset.num_images} pictures can be read; "
            f"the first, {first.name}: {first.reason}"
        )
    kept = dataset if len(images.kept) == dataset.num_images else dataset.subset(images.kept.tolist())
    return Inputs(kept, images, TextInputs(model.text_encoder, kept.captions, model.device))


def can_cache(model: AVSE, image_augment: bool = False) -> bool:
    """Tell whether the grids can be computed once: a frozen encoder, sampled at its output, pictures as they are."""
    settings = model.config.image_encoder
    return settings.frozen and settings.sampling_stage == "output" and not image_augment


def select(inputs: Inputs, dataset: PairDataset) -> Inputs:
    """Take a part of an open split by image id, such as one split of all: nothing is read or encoded again.

    Pictures that could not be read are left out; the others keep the order of `dataset`.
    """
    rows = {image_id: row for row, image_id in enumerate(inputs.dataset.image_ids)}
    found = [i for i, image_id in enumerate(dataset.image_ids) if image_id in rows]
    part = dataset if len(found) == dataset.num_images else dataset.subset(found)
    return Inputs(part, _Selected(inputs.images, np.array([rows[i] for i in part.image_ids])), inputs.texts)


class _Selected:
    """Some rows of other inputs."""

    def __init__(self, images: ImageInputs, rows: np.ndarray) -> None:
        self.images, self.rows = images, rows
        self.kept = np.arange(len(rows))
        self.skipped: tuple[Skip, ...] = ()

    def batch(self, rows: Rows, random: np.random.Generator | None = None) -> Tensor:
        return self.images.batch(self.rows[np.asarray(rows, np.int64)], random)


def _problem(path: Path) -> str | None:
    try:
        read_image(path, draft=(64, 64))
    except ImageError as error:
        return error.reason
    return None
