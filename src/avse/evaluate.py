"""Honest figures: a model or an ensemble on a split, every image and distinct text encoded once (method, section 5)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avse.data import PairDataset
from avse.inputs import Inputs, open_inputs, reads_regions, select
from avse.metrics import RetrievalReport
from avse.model import AVSE
from avse.protocols import Scored, measure, prepare
from avse.scoring.tiles import score_tiles
from avse.texts import text_groups

log = logging.getLogger(__name__)


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

    Returns:
        The plain protocol with the duplicate-aware one beside it.

    Raises:
        ValueError: the protocol is not defined on these data, or members of an ensemble read other pictures.
    """
    if not isinstance(protocol, str):
        raise TypeError(f"one protocol by its name is measured at a time, not {protocol!r}: call evaluate for each")
    part = prepare([protocol], inputs.dataset if inputs else dataset)
    if inputs and part is not inputs.dataset:
        inputs = select(inputs, part)
    models = [model] if isinstance(model, AVSE) else model
    opened = ((one, inputs or open_inputs(one, part, cache=cache), meta or {}) for one in models)
    return measure(score(opened, batch_size), protocol, bootstrap=bootstrap, confidence=confidence)


def score(members: Iterable[tuple[AVSE, Inputs, dict[str, Any]]], batch_size: int = 64) -> Scored:
    """Score every image of a split against every distinct text; several models give the mean of their S.

    Args:
        members: each model with the split, open for it, and further facts. They are taken one after the other, so that
            a generator need hold one model at a time.
        batch_size: pictures or texts at a time.

    Raises:
        ValueError: no member, or members that read other pictures or captions.
    """
    scores: np.ndarray | None = None
    first: Inputs | None = None
    facts: list[dict[str, Any]] = []
    for model, inputs, meta in members:
        first = first or inputs
        _same_pairs(first, inputs)
        facts.append({**_facts(model, inputs), **meta, "_text_blocks": model.num_text_blocks})
        scores = add_scores(scores, *encode_inputs(model, inputs, batch_size))
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


def _facts(model: AVSE, inputs: Inputs) -> dict[str, Any]:
    """Return what the figures of a model stand with."""
    encoder = model.image_encoder
    size = {"regions": encoder.grid[1]} if reads_regions(model) else {"resolution": encoder.pixels.size[0]}
    told: dict[str, Any] = {
        "dataset": inputs.dataset.name,
        "split": inputs.dataset.split,
        **size,
        "precision": inputs.images.precision,
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


def encode_inputs(model: AVSE, inputs: Inputs, batch_size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Embed every image and every distinct text once.

    Texts that differ only in case and spaces are one; shortest first, so that little is spent on padding.

    Returns:
        Images (n, P, C) and distinct texts (g, Q, C) in the order of `text_groups`, float32.
    """
    training = model.training
    model.eval()
    images = np.empty((inputs.dataset.num_images, model.num_image_blocks, model.block_width), np.float32)
    first = np.unique(text_groups(inputs.dataset.captions), return_index=True)[1]
    distinct = [inputs.dataset.captions[i] for i in first]
    texts = np.empty((len(distinct), model.num_text_blocks, model.block_width), np.float32)
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            rows = range(start, min(start + batch_size, len(images)))
            batch = inputs.images.batch(rows).to(model.device)
            embed = model.embed_pixels if batch.ndim == 4 else model.embed_features
            images[start : rows.stop] = embed(batch).float().cpu().numpy()
        order = sorted(range(len(distinct)), key=lambda i: len(distinct[i]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            tokens, mask = inputs.texts.batch([distinct[i] for i in chosen])
            read = model.embed_tokens if tokens.ndim == 2 else model.embed_token_features
            texts[chosen] = read(tokens.to(model.device), mask.to(model.device)).float().cpu().numpy()
    model.train(training)
    return images, texts
