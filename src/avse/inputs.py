"""What a model eats: pictures as pixels or cached grids, or regions made beforehand; captions as ids or cached tokens.

The trainer and the evaluation ask for batches by row number and need not know which of these they get.
"""

from __future__ import annotations

import functools
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

from avse import parallel
from avse.data import PairDataset, Skip
from avse.data.dataset import FeatureRows
from avse.encoders import ImageEncoder, TextEncoder
from avse.features import FeatureCache, text_tokens
from avse.images import ImageError, read_image, to_pixels
from avse.model import AVSE

log = logging.getLogger(__name__)

SAMPLED = 64
"""Rows of a file of features whose content is part of its hash."""
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

    def batch(self, rows: Rows, seeds: Sequence[int] | None = None) -> Tensor:
        """Return pixels (B, 3, H, W) or features (B, G, W), float32; `seeds`, one a picture, augment pictures."""
        ...


class PixelInputs:
    """Pictures decoded when they are asked for, by a few threads.

    All are decoded once at the start: one that cannot be read is listed before training, not met in its middle.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        dataset: PairDataset,
        *,
        workers: int = 2,
        augment: Augment | None = None,
        shared: bool = False,
    ) -> None:
        self.encoder, self.augment = encoder, augment
        self.pool = ThreadPoolExecutor(max(1, workers))
        self.precision = "fp32"
        paths = dataset.image_paths[parallel.own_rows(dataset.num_images)] if shared else dataset.image_paths
        bar = tqdm(paths, desc=f"checking {dataset.split} pictures", unit="picture", leave=False)
        checked = list(self.pool.map(_check, bar))
        if shared:
            checked = [found for part in parallel.gather_objects(checked) for found in part]
        self.content = sha256(" ".join(digest for digest, _ in checked).encode()).hexdigest()
        self.kept = np.array([row for row, (_, problem) in enumerate(checked) if not problem], dtype=np.int64)
        self.skipped = tuple(Skip(dataset.image_ids[row], text) for row, (_, text) in enumerate(checked) if text)
        self.paths = [dataset.image_paths[row] for row in self.kept]

    def batch(self, rows: Rows, seeds: Sequence[int] | None = None) -> Tensor:
        """Return pixels (B, 3, H, W)."""
        load = functools.partial(load_augmented, self.encoder, augment=self.augment)
        paths = [self.paths[row] for row in rows]
        return torch.from_numpy(np.stack(list(self.pool.map(load, paths, seeds or [None] * len(paths)))))


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

    def batch(self, rows: Rows, seeds: Sequence[int] | None = None) -> Tensor:
        """Return features (B, prefix + G, W)."""
        return self.grids.batch(rows)


class RegionInputs:
    """Features made beforehand, read from their file when they are asked for: it may be larger than the memory.

    They are checked for numbers that are not finite as they are read, a few rows at the start: a file of some 30 GB is
    not read twice.
    """

    def __init__(self, encoder: ImageEncoder, features: FeatureRows, image_ids: Sequence[str]) -> None:
        self.path, self.rows, self.ids = features.path, features.rows, image_ids
        self.values = features.open()
        shape, wanted = self.values.shape, (encoder.grid[0] * encoder.grid[1], encoder.width)
        if shape[1:] != wanted:
            raise ValueError(
                f"{self.path} holds {shape[1]} features of width {shape[2]} an image; the model reads {wanted[0]} of "
                f"width {wanted[1]}: set model.image_encoder.num_regions={shape[1]} and "
                f"model.image_encoder.width={shape[2]}, or take the features that the model was made for"
            )
        if len(self.rows) and not 0 <= int(self.rows.min()) <= int(self.rows.max()) < shape[0]:
            raise ValueError(f"{self.path} has {shape[0]} rows; the data set asks for row {int(self.rows.max())}")
        self.kept = np.arange(len(image_ids))
        self.skipped: tuple[Skip, ...] = ()
        self.precision = f"features {self.values.dtype.name}"
        digest = sha256(f"{shape} {self.values.dtype.str} {self.path.stat().st_size}".encode())
        digest.update(np.ascontiguousarray(self.rows).tobytes())
        for row in np.unique(np.linspace(0, len(image_ids) - 1, SAMPLED).astype(np.int64)):
            digest.update(self.batch([int(row)]).numpy().tobytes())
        self.content = digest.hexdigest()

    def batch(self, rows: Rows, seeds: Sequence[int] | None = None) -> Tensor:
        """Return features (B, G, W) float32; ValueError where one is not a finite number."""
        chosen = np.asarray(rows, np.int64)
        values = np.asarray(self.values[self.rows[chosen]], np.float32)
        broken = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2)))
        if len(broken):
            place = int(chosen[broken[0]])
            raise ValueError(
                f"{self.path}, row {int(self.rows[place])} (image {self.ids[place]!r}): not all features are finite "
                "numbers; make them anew, or leave the image out"
            )
        return torch.from_numpy(values)


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
            self._lengths, truncated = self.tokens.lengths, self.tokens.truncated
        else:
            parts = (self.distinct[start : start + 1024] for start in range(0, len(self.distinct), 1024))
            counted = [(batch.attention_mask.sum(dim=1), batch.truncated) for batch in map(encoder.tokenize, parts)]
            self._lengths, truncated = (torch.cat(column) for column in zip(*counted))
        if cut := int(truncated.sum()):
            log.warning(
                "%d of %d texts are longer than %d tokens and are cut (text_encoder.max_length)",
                cut,
                len(self.distinct),
                encoder.max_length,
            )

    def lengths(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return how many tokens texts have, (m,)."""
        return self._lengths[[self.row[text] for text in texts]].numpy()

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
    shared: bool = False,
) -> Inputs:
    """Open a split: with a cache folder the frozen encoder's grids, otherwise pictures decoded when they are asked for.

    A data set of features made beforehand is read as it is and needs no cache. With `shared` every process of a
    training calls this, and a picture that is not cached is checked by one of them.

    Raises:
        FeatureError: a cache is named, but the encoder is not frozen, samples at its input, or pictures are augmented.
        ValueError: no picture of the split can be read; a model of regions and a set of pictures, or the reverse.
    """
    images: ImageInputs
    if dataset.features is not None or reads_regions(model):
        if dataset.features is None or not reads_regions(model):
            raise _other_kind(model.image_encoder, dataset)
        if augment is not None:
            raise ValueError(
                "image_augment crops and flips pictures, and there are none: set train.image_augment=false "
                "(train.size_augment leaves regions out)"
            )
        images = RegionInputs(model.image_encoder, dataset.features, dataset.image_ids)
    elif cache is not None:
        images = GridInputs(
            model.image_encoder, dataset, cache, model.device, workers=workers, image_augment=augment is not None
        )
    else:
        images = PixelInputs(model.image_encoder, dataset, workers=workers, augment=augment, shared=shared)
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


def load_augmented(
    encoder: ImageEncoder, source: Path | bytes, seed: int | None, *, augment: Augment | None
) -> NDArray[np.float32]:
    """Read a picture as pixels (3, H, W), changed as its seed says; ImageError where it cannot be read."""
    if augment is None or seed is None:
        return encoder.load_pixels(source)
    return to_pixels(augment(read_image(source), np.random.default_rng(seed)), encoder.pixels)


def can_cache(model: AVSE, image_augment: bool = False) -> bool:
    """Tell whether the grids can be computed once: a frozen encoder, sampled at its output, pictures as they are."""
    settings = model.config.image_encoder
    fixed = settings.frozen and settings.sampling_stage == "output" and not image_augment
    return fixed and not reads_regions(model)


def reads_regions(model: AVSE) -> bool:
    """Tell whether a model reads features made beforehand in the place of pictures."""
    return model.config.image_encoder.source == "regions"


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

    def batch(self, rows: Rows, seeds: Sequence[int] | None = None) -> Tensor:
        return self.images.batch(self.rows[np.asarray(rows, np.int64)], seeds)


def _other_kind(encoder: ImageEncoder, dataset: PairDataset) -> ValueError:
    """Say that a model and a data set do not go together: the one has pictures, the other features."""
    if dataset.features is None:
        told = f"holds pictures, and the model reads {encoder.grid[1]} features of width {encoder.width} an image"
        out = "name a set that has them (SPLIT_ims.npy), or train a model that reads pictures"
    else:
        told = f"holds features made beforehand ({dataset.features.path.name}), and the model reads pictures"
        out = "set model.image_encoder.source=regions with their width, or name a set of pictures"
    return ValueError(f"{dataset.name}, split {dataset.split}, {told}: {out}")


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
