"""What a model eats: pictures of a data set as pixels or cached grids, captions as ids or cached tokens.

The trainer and the evaluation ask for batches by row number and need not know which of the two they get.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
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

log = logging.getLogger(__name__)

LISTED = 10
"""Pictures left out that are named in the log; the result holds all of them."""

Rows = Sequence[int] | NDArray[np.int64]
Augment = Callable[[Image.Image, np.random.Generator], Image.Image]


class ImageInputs(Protocol):
    """Pictures of a data set, by row."""

    kept: np.ndarray
    """(n,) int64 rows of the data set that can be read; a batch names rows of these."""
    skipped: tuple[Skip, ...]
    precision: str
    """How the encoder's output was computed and stored."""
    content: str
    """Hash of the pictures' content (and, for cached grids, of the encoder)."""

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
        self.precision = "fp32"
        bar = tqdm(dataset.image_paths, desc=f"checking {dataset.split} pictures", unit="picture", leave=False)
        checked = list(self.pool.map(_check, bar))
        self.content = sha256(" ".join(digest for digest, _ in checked).encode()).hexdigest()
        self.kept = np.array([row for row, (_, problem) in enumerate(checked) if not problem], dtype=np.int64)
        self.skipped = tuple(Skip(dataset.image_ids[row], text) for row, (_, text) in enumerate(checked) if text)
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
        workers: int = 2,
        image_augment: bool = False,
    ) -> None:
        self.grids = FeatureCache(cache).grids(
            encoder,
            dataset.image_paths,
            dataset.image_ids,
            device=device,
            workers=workers,
            image_augment=image_augment,
        )
        self.kept, self.skipped, self.content = self.grids.kept, self.grids.skipped, self.grids.key
        self.precision = f"{self.grids.precision}, grids float16"

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
        if self.tokens is not None:
            cut = int(self.tokens.truncated.sum())
        else:
            parts = (self.distinct[start : start + 1024] for start in range(0, len(self.distinct), 1024))
            cut = sum(int(encoder.tokenize(part).truncated.sum()) for part in parts)
        if cut:
            log.warning(
                "%d of %d texts are longer than %d tokens and are cut (text_encoder.max_length)",
                cut,
                len(self.distinct),
                encoder.max_length,
            )

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
        images = GridInputs(
            model.image_encoder, dataset, cache, model.device, workers=workers, image_augment=augment is not None
        )
    else:
        images = PixelInputs(model.image_encoder, dataset, workers=workers, augment=augment)
    for skip in images.skipped[:LISTED]:
        log.warning("left out: %s: %s", skip.name, skip.reason)
    if len(images.skipped) > LISTED:
        log.warning("… and %d more pictures of the %s split", len(images.skipped) - LISTED, dataset.split)
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
        self.precision, self.content = images.precision, images.content

    def batch(self, rows: Rows, random: np.random.Generator | None = None) -> Tensor:
        return self.images.batch(self.rows[np.asarray(rows, np.int64)], random)


def _check(path: Path) -> tuple[str, str]:
    """Return a picture's SHA-256 and why it cannot be read, empty where it can."""
    try:
        data = path.read_bytes()
        read_image(data, draft=(64, 64))
    except ImageError as error:
        return sha256(data).hexdigest(), error.reason
    except OSError as error:
        return "", error.strerror or str(error)
    return sha256(data).hexdigest(), ""
