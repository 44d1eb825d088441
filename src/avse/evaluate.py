"""Honest figures: a model on a split, every image and every distinct text encoded once (method, section 5)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avse.data import PairDataset
from avse.inputs import Inputs, open_inputs
from avse.metrics import RetrievalReport, interval, resampled_rsums, retrieval_metrics
from avse.model import AVSE
from avse.texts import text_groups


def evaluate(
    model: AVSE,
    dataset: PairDataset,
    *,
    batch_size: int = 64,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    cache: str | Path | None = None,
    inputs: Inputs | None = None,
    meta: dict[str, Any] | None = None,
) -> RetrievalReport:
    """Measure a model on one split.

    Args:
        model: the model; its mode is restored afterwards.
        dataset: the split. Pictures that cannot be read are left out and counted in the report's `skipped`.
        batch_size: pictures or texts at a time; changes no figure.
        bootstrap: resamples for the interval of rSum; 0: none.
        confidence: of the interval.
        cache: folder of cached grids, for frozen encoders.
        inputs: the split, already open; then `dataset` is not read again.
        meta: further facts the figures stand with, such as the seed.

    Returns:
        The plain protocol with the duplicate-aware one beside it.
    """
    inputs = inputs or open_inputs(model, dataset, cache=cache)
    told: dict[str, Any] = {
        "dataset": inputs.dataset.name,
        "split": inputs.dataset.split,
        "resolution": model.image_encoder.pixels.size[0],
        "precision": inputs.images.precision,
        **model.facts,
        **(meta or {}),
    }
    if inputs.skipped:
        told["skipped"] = len(inputs.skipped)
    images, texts = encode_inputs(model, inputs, batch_size)
    captions = inputs.dataset.captions
    scores = model.similarity(images, texts)[:, text_groups(captions)]
    report = retrieval_metrics(scores, inputs.dataset.text_to_image, texts=captions, meta=told)
    if bootstrap:
        found = interval(resampled_rsums([report.ranks], bootstrap), confidence)
        report = replace(report, interval=found)
    return report


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
