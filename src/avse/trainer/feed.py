"""Batches for the steps: planned by (seed, epoch), drawn, decoded ahead, divided among processes.

Every process plans the whole batch and draws for all of it, then takes its own rows: so the batches do not depend on
how many processes there are. Knows an open split or tar shards, and the model's grid; no loss, no step.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from avse import parallel
from avse.config import TrainConfig
from avse.data import PairDataset
from avse.data.shards import PairShards, Sample
from avse.data.transforms import augment
from avse.images import ImageError
from avse.inputs import Augment, Inputs, load_augmented
from avse.model import AVSE
from avse.trainer.schedule import epoch_seed
from avse.trainer.step import Batch


@dataclass(frozen=True)
class Fed:
    """A batch, and the states of the generators after it was drawn: plain values and tensors."""

    batch: Batch | None
    """None: none of its pictures can be read, in this process's share."""
    states: dict[str, Any]


class Feed(Protocol):
    """Where a trainer's batches come from."""

    steps: int
    """Batches an epoch, the same on every process."""
    unreadable: dict[str, str]
    """Pictures that could not be decoded since training began or went on, and why: all others were checked before."""

    def epoch(self, epoch: int, start: int = 0, states: dict[str, Any] | None = None) -> Iterator[Fed]:
        """Yield an epoch's batches from the `start`-th on, given the states that came with the one before it."""
        ...


class PairFeed:
    """Batches of an open split: each image once with one random caption of its own, or every pair."""

    def __init__(self, train: Inputs, model: AVSE, config: TrainConfig) -> None:
        self.train, self.model, self.config = train, model, config
        self.unreadable: dict[str, str] = {}
        items = train.dataset.num_images if config.epoch_of == "images" else train.dataset.num_pairs
        self.steps = max(1, math.ceil(items / config.batch_size))
        _refuse_small(items // self.steps)

    def epoch(self, epoch: int, start: int = 0, states: dict[str, Any] | None = None) -> Iterator[Fed]:
        """Yield batches; nothing is read for those before `start`."""
        seed = epoch_seed(self.config.seed, epoch)
        generator, random = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        plan = np.array_split(self._captions(self.train.dataset, random), self.steps)
        if states:
            generator.set_state(states["generator"])
            random.bit_generator.state = json.loads(states["random"])
        for captions in plan[start:]:
            batch = self._draw(captions, generator, random)
            yield Fed(batch, _states(generator, random))

    def _captions(self, dataset: PairDataset, random: np.random.Generator) -> np.ndarray:
        """Return the rows of the epoch's captions in their order; nothing is dropped."""
        if self.config.epoch_of == "pairs":
            return random.permutation(dataset.num_pairs)
        own = np.argsort(dataset.text_to_image, kind="stable")
        counts = np.bincount(dataset.text_to_image, minlength=dataset.num_images)
        starts = np.cumsum(counts) - counts
        having = np.flatnonzero(counts)
        picked = starts[having] + (random.random(len(having)) * counts[having]).astype(np.int64)
        return random.permutation(own[picked])

    def _draw(self, captions: np.ndarray, generator: torch.Generator, random: np.random.Generator) -> Batch:
        train, config = self.train, self.config
        images = train.dataset.text_to_image[captions]
        texts = [train.dataset.captions[i] for i in captions]
        tokens, mask = train.texts.batch(texts, generator if config.word_augment else None)
        seeds = _seeds(random, len(images)) if config.image_augment else None
        mine = parallel.own_rows(len(images))
        pixels = train.images.batch(images[mine], seeds and seeds[mine])
        views, seen = draw_views(self.model, config.size_augment, len(images), generator)
        views, seen = (None if drawn is None else drawn[mine] for drawn in (views, seen))
        ids: list[Hashable] = images[mine].tolist()
        return _pinned(Batch(pixels, tokens[mine], mask[mine], views, seen, ids, texts[mine]))


class ShardFeed:
    """Batches of tar shards: each process streams its own share, each picture with one random caption of its own.

    Pictures that cannot be decoded are left out of their batch and named in `unreadable`.
    """

    def __init__(self, shards: PairShards, model: AVSE, config: TrainConfig, buffer: int) -> None:
        self.shards, self.model, self.config, self.buffer = shards, model, config, buffer
        if config.epoch_of == "pairs":
            raise ValueError("train.epoch_of=pairs needs random access, and shards are streamed: set it to images")
        self.steps = max(1, math.ceil(shards.num_images / config.batch_size))
        self.unreadable: dict[str, str] = {}
        self.pool = ThreadPoolExecutor(max(1, config.workers))
        _refuse_small(shards.num_images // self.steps // 2)

    def epoch(self, epoch: int, start: int = 0, states: dict[str, Any] | None = None) -> Iterator[Fed]:
        """Yield batches; of the samples before `start` only what the shuffle buffer still holds is read again."""
        rank, ranks = parallel.rank(), parallel.world()
        seed = epoch_seed(self.config.seed, epoch, rank)
        generator, random = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
        if states:
            generator.set_state(states["generator"])
            random.bit_generator.state = json.loads(states["random"])
        ends = [step * self.shards.num_images // self.steps for step in range(self.steps + 1)]
        own = [(rank + 1) * end // ranks - rank * end // ranks for end in ends]  # of each end: they sum to it
        sizes = [later - earlier for earlier, later in zip(own, own[1:])]
        place = {"seed": self.config.seed, "epoch": epoch, "rank": rank, "ranks": ranks, "start": sum(sizes[:start])}
        stream = self.shards.read(**place, workers=max(1, self.config.workers), buffer=self.buffer)
        with closing(stream):
            for size in sizes[start:]:
                batch = self._draw([next(stream) for _ in range(size)], generator, random)
                yield Fed(batch, _states(generator, random))

    def _draw(self, samples: list[Sample], generator: torch.Generator, random: np.random.Generator) -> Batch | None:
        config, encoder = self.config, self.model.image_encoder
        chosen = [sample.captions[int(random.random() * len(sample.captions))] for sample in samples]
        seeds = _seeds(random, len(samples)) if config.image_augment else [None] * len(samples)
        load = partial(_load_or_why, encoder, change=augmentation(config))
        loaded = list(self.pool.map(load, samples, seeds))
        views, seen = draw_views(self.model, config.size_augment, len(samples), generator)
        good = [i for i, pixels in enumerate(loaded) if not isinstance(pixels, str)]
        if len(good) < len(loaded):  # a new mapping: another thread may be reading the old one
            news = {samples[i].key: why for i, why in enumerate(loaded) if isinstance(why, str)}
            self.unreadable = {**self.unreadable, **news}
        if not good:
            return None
        tokens = self.model.text_encoder.tokenize([chosen[i] for i in good])
        if config.word_augment:
            tokens = self.model.text_encoder.augment(tokens.input_ids, tokens.attention_mask, generator)
        pixels = torch.from_numpy(np.stack([loaded[i] for i in good]))
        views, seen = (None if drawn is None else drawn[good] for drawn in (views, seen))
        ids: list[Hashable] = [samples[i].key for i in good]
        texts = [chosen[i] for i in good]
        return _pinned(Batch(pixels, tokens.input_ids, tokens.attention_mask, views, seen, ids, texts))


def augmentation(config: TrainConfig) -> Augment | None:
    """Return what training does to a picture; None: nothing."""
    return partial(augment, color=config.color_augment) if config.image_augment else None


def draw_views(model: AVSE, most: float, batch: int, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
    """Draw the cells of each view (B, V, K); where groups choose, the features they choose from (B, prefix + G).

    Args:
        model: with its sampling in training mode.
        most: size augmentation: up to this share of the cells is dropped at random, never a prefix token.
        batch: B.
        generator: of the draws.
    """
    encoder = model.image_encoder
    if model.groups is None:
        views = model.sampling(encoder.grid, batch, generator)
        return (_drop_cells(views, most, generator) if most else views), None
    if not most:
        return None, None
    prefix, cells = encoder.num_prefix, encoder.grid[0] * encoder.grid[1]
    left = _drop_cells(torch.arange(cells).expand(batch, 1, cells), most, generator)[:, 0]
    seen = torch.arange(prefix + cells).expand(batch, -1) < prefix
    return None, seen.scatter(1, left + prefix, True)


def _drop_cells(views: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Keep a random subset of each view's cells: one share for the batch, drawn from [0, most]."""
    batch, count, keep = views.shape
    share = float(torch.rand((), generator=generator)) * most
    left = max(1, keep - int(share * keep))
    order = torch.rand(batch, count, keep, generator=generator).argsort(dim=-1)[..., :left]
    return views.gather(2, order.sort(dim=-1).values)


def _states(generator: torch.Generator, random: np.random.Generator) -> dict[str, Any]:
    return {"generator": generator.get_state(), "random": json.dumps(random.bit_generator.state)}


def _seeds(random: np.random.Generator, count: int) -> list[int]:
    return [int(seed) for seed in random.integers(1 << 62, size=count)]


def _load_or_why(encoder: Any, sample: Sample, seed: int | None, *, change: Augment | None) -> Any:
    """Return pixels (3, H, W), or why there are none."""
    try:
        return load_augmented(encoder, sample.image, seed, augment=change)
    except ImageError as error:
        return error.reason


def _pinned(batch: Batch) -> Batch:
    """Put a batch where a GPU can fetch it by itself."""
    return batch.pinned() if torch.cuda.is_available() else batch


def _refuse_small(least: int) -> None:
    if least < parallel.world():
        raise ValueError(
            f"batches of {least} pairs cannot be divided among {parallel.world()} processes: raise train.batch_size, "
            "or start fewer processes"
        )
