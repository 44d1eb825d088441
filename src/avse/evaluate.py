"""Honest figures: a model or an ensemble on a split, every image and distinct text encoded once (method, section 5)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from avse import parallel
from avse.ahead import Ahead
from avse.data import PairDataset
from avse.features import Precision, resolve_precision
from avse.inputs import Inputs, open_inputs, reads_regions, select
from avse.metrics import RetrievalReport
from avse.model import AVSE
from avse.protocols import Scored, measure, prepare
from avse.scoring.tiles import score_tiles
from avse.texts import text_groups

log = logging.getLogger(__name__)
_T = TypeVar("_T")


def evaluate(
    model: AVSE | Sequence[AVSE],
    dataset: PairDataset,
    *,
    protocol: str = "plain",
    batch_size: int = 64,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    cache: str | Path | None = None,
    inputs: Inputs | None = None,
    meta: dict[str, Any] | None = None,
    precision: Precision = "fp32",
    tick: Callable[[int], object] | None = None,
    shared: bool = False,
) -> RetrievalReport:
    """Measure a model on one split.

    Args:
        model: the model, or several as an ensemble: their scores are averaged. Their modes are restored afterwards.
        dataset: the split. Pictures that cannot be read are left out and counted in the report's `skipped`.
        protocol: one of `avse.protocols.PROTOCOLS`.
        batch_size: pictures or texts at a time; changes no figure.
        bootstrap: resamples for the intervals; 0: none.
        confidence: of the intervals.
        cache: folder of cached grids, for frozen encoders.
        inputs: the split, already open for every model given; then `dataset` is not read again.
        meta: further facts the figures stand with, such as the seed.
        precision: of the model's forward pass; "auto" is bf16 autocast where the device has it, else fp32.
        tick: called after each batch with its number of pictures or texts; what it raises ends the evaluation.
        shared: every process of a training calls this, and each embeds its part.

    Returns:
        The plain protocol with the duplicate-aware one beside it.

    Raises:
        ValueError: the protocol is not defined on these data, members of an ensemble read other pictures, or bf16 on a
            device without it.
    """
    if not isinstance(protocol, str):
        raise TypeError(f"one protocol by its name is measured at a time, not {protocol!r}: call evaluate for each")
    part = prepare([protocol], inputs.dataset if inputs else dataset)
    if inputs and part is not inputs.dataset:
        inputs = select(inputs, part)
    models = [model] if isinstance(model, AVSE) else model
    opened = ((one, inputs or open_inputs(one, part, cache=cache), meta or {}) for one in models)
    scored = score(opened, batch_size, precision=precision, tick=tick, shared=shared)
    return measure(scored, protocol, bootstrap=bootstrap, confidence=confidence)


def score(
    members: Iterable[tuple[AVSE, Inputs, dict[str, Any]]],
    batch_size: int = 64,
    *,
    precision: Precision = "fp32",
    tick: Callable[[int], object] | None = None,
    shared: bool = False,
) -> Scored:
    """Score every image of a split against every distinct text; several models give the mean of their S.

    Args:
        members: each model with the split, open for it, and further facts. They are taken one after the other, so that
            a generator need hold one model at a time.
        batch_size: pictures or texts at a time.
        precision: as in `evaluate`.
        tick: as in `evaluate`.
        shared: as in `evaluate`.

    Raises:
        ValueError: no member, members that read other pictures or captions, or bf16 on a device without it.
    """
    scores: np.ndarray | None = None
    first: Inputs | None = None
    facts: list[dict[str, Any]] = []
    for model, inputs, meta in members:
        first = first or inputs
        _same_pairs(first, inputs)
        facts.append({**_facts(model, inputs, precision), **meta, "_text_blocks": model.num_text_blocks})
        embedded = encode_inputs(model, inputs, batch_size, precision=precision, tick=tick, shared=shared)
        scores = add_scores(scores, *embedded)
    if scores is None or first is None:
        raise ValueError("no model to evaluate")
    blocks = sorted({fact.pop("_text_blocks") for fact in facts})
    if len(facts) > 1:
        scores /= len(facts)
    if len(blocks) > 1:
        log.warning(
            "members have Q = %s text blocks: S lies in [-Q, Q], so those with more weigh more in the mean",
            ", ".join(map(str, blocks)),
        )
    return Scored(scores, first.dataset, text_groups(first.dataset.captions), _joined(facts))


def add_scores(scores: np.ndarray | None, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Add S of image blocks (n, P, C) against text blocks (k, Q, C) to scores (n, k) in place; None: new ones.

    A tile at a time: no second matrix of this size is held.
    """
    total = np.zeros((len(images), len(texts)), np.float32) if scores is None else scores
    for rows, columns, tile in score_tiles(images, texts):
        total[rows, columns] += tile
    return total


def _facts(model: AVSE, inputs: Inputs, precision: Precision) -> dict[str, Any]:
    """Return what the figures of a model stand with."""
    encoder, computed = model.image_encoder, inputs.images.precision
    if resolve_precision(model.device, precision) == "bf16":
        computed = "bf16" if computed == "fp32" else f"{computed}, heads bf16"
    size = {"regions": encoder.grid[1]} if reads_regions(model) else {"resolution": encoder.pixels.size[0]}
    told: dict[str, Any] = {
        "dataset": inputs.dataset.name,
        "split": inputs.dataset.split,
        **size,
        "precision": computed,
        **model.facts,
    }
    return {**told, "skipped": len(inputs.skipped)} if inputs.skipped else told


def _joined(facts: list[dict[str, Any]]) -> dict[str, Any]:
    """Join the facts of an ensemble's members: those that differ are listed."""
    if len(facts) == 1:
        return facts[0]
    joined: dict[str, Any] = {"ensemble": len(facts)}
    for key in dict.fromkeys(key for fact in facts for key in fact):
        values = [fact.get(key) for fact in facts]
        joined[key] = values[0] if all(value == values[0] for value in values) else " + ".join(map(str, values))
    return joined


def _same_pairs(first: Inputs, other: Inputs) -> None:
    if first.dataset.fingerprint() != other.dataset.fingerprint():
        ids = set(first.dataset.image_ids) ^ set(other.dataset.image_ids)
        told = f"; {len(ids)} pictures are read by one alone, such as {min(ids)!r}" if ids else ""
        raise ValueError(f"the members of an ensemble must be measured on the same pairs{told}")


def encode_inputs(
    model: AVSE,
    inputs: Inputs,
    batch_size: int = 64,
    *,
    precision: Precision = "fp32",
    tick: Callable[[int], object] | None = None,
    shared: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Embed every image and every distinct text once, the next batch being read while the encoder works.

    Texts that differ only in case and spaces are one; shortest first, so that little is spent on padding.

    Args:
        model: its mode is restored afterwards, whatever happens.
        inputs: the split, open for it.
        batch_size: pictures or texts at a time.
        precision: as in `evaluate`.
        tick: as in `evaluate`.
        shared: as in `evaluate`.

    Returns:
        Images (n, P, C) and distinct texts (g, Q, C) in the order of `text_groups`, float32.

    Raises:
        ValueError: bf16 on a device without it.
    """
    images = np.empty((inputs.dataset.num_images, model.num_image_blocks, model.block_width), np.float32)
    first = np.unique(text_groups(inputs.dataset.captions), return_index=True)[1]
    distinct = [inputs.dataset.captions[i] for i in first]
    texts = np.empty((len(distinct), model.num_text_blocks, model.block_width), np.float32)
    order = np.argsort(inputs.texts.lengths(distinct), kind="stable").tolist()
    mine = parallel.own_rows(len(images)) if shared else slice(0, len(images))
    order = order[parallel.rank() :: parallel.world()] if shared else order
    tick, half = tick or (lambda count: None), resolve_precision(model.device, precision) == "bf16"
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=half):
            rows = _parts(range(mine.start, mine.stop), batch_size)
            with closing(Ahead((inputs.images.batch(part) for part in rows), depth=1)) as batches:
                for part, batch in zip(rows, batches):
                    embed = model.embed_pixels if batch.ndim == 4 else model.embed_features
                    images[part] = embed(batch.to(model.device)).float().cpu().numpy()
                    tick(len(part))
            for part in _parts(order, batch_size):
                tokens, mask = inputs.texts.batch([distinct[i] for i in part])
                read = model.embed_tokens if tokens.ndim == 2 else model.embed_token_features
                texts[part] = read(tokens.to(model.device), mask.to(model.device)).float().cpu().numpy()
                tick(len(part))
    finally:
        model.train(training)
    if shared and parallel.world() > 1:
        for of_images, some, of_texts, others in parallel.gather_objects((mine, images[mine], order, texts[order])):
            images[of_images], texts[of_texts] = some, others
    return images, texts


def _parts(rows: Sequence[_T], size: int) -> list[Sequence[_T]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
