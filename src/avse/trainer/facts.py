"""What a training's figures stand with: what it was made of, how its views overlap, how validation went.

Knows a model's configuration, open splits and reports; no loop, no step.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from avse import parallel
from avse.calibration import Calibration, CalibrationError
from avse.config import TrainConfig
from avse.data.shards import PairShards
from avse.evaluate import score
from avse.inputs import Inputs
from avse.losses import CrossViewDecorrelationLoss
from avse.metrics import RetrievalReport
from avse.model import AVSE
from avse.protocols import calibration_of
from avse.sampling import mean_overlap

log = logging.getLogger(__name__)

Train = Inputs | PairShards
SMALL_VALIDATION = 50
ALIKE = {"checkpoint_minutes", "tensorboard", "workers"}
"""Settings that change no result: a training may go on with others."""


def identity_of(model: AVSE, config: TrainConfig, train: Train, val: Inputs, buffer: int) -> dict[str, Any]:
    """Return what must be the same when a training goes on; `buffer` is the shards' shuffle buffer."""
    if isinstance(train, PairShards):  # which sample comes when depends on how many read
        readers = {"processes": parallel.world(), "readers": max(1, config.workers), "buffer": buffer}
        data = {"train_images": train.num_images, "train": train.fingerprint(), **readers}
        pictures = [val.images.content]
    else:
        counts = {"train_images": train.dataset.num_images, "train_captions": train.dataset.num_pairs}
        data, pictures = {**counts, "train": train.dataset.fingerprint()}, [train.images.content, val.images.content]
    return {
        "config": config.model_dump(mode="json", exclude=ALIKE),
        "model": model.config.model_dump(mode="json"),
        "init_from": model.facts.get("init_from"),
        **data,
        "val_images": val.dataset.num_images,
        "val": val.dataset.fingerprint(),
        "pictures": pictures,
        "encoders": [
            encoder.fingerprint() if encoder.frozen else encoder.describe()
            for encoder in (model.image_encoder, model.text_encoder)
        ],
    }


def described(model: AVSE, config: TrainConfig, train: Train, val: Inputs, steps: int) -> dict[str, Any]:
    """Return what run.json says from the start; tell of it what somebody who waits should know."""
    counts: dict[str, Any] = {
        "name": val.dataset.name,
        "val": {"images": val.dataset.num_images, "pairs": val.dataset.num_pairs},
    }
    if isinstance(train, PairShards):
        counts["train"], skipped = {"images": train.num_images}, list(val.skipped)
        told = "streamed from shards; nothing of them is cached"
    else:
        counts["train"] = {"images": train.dataset.num_images, "pairs": train.dataset.num_pairs}
        skipped, told = [*train.skipped, *val.skipped], f"and {train.dataset.num_pairs} captions"
    images, several = counts["train"]["images"], model.config.num_views > 1
    log.info("%d steps an epoch of %d pictures %s", steps, images, told)
    views: dict[str, Any] = {"views": model.config.num_views}
    if several and (overlap := views_overlap(model, train)) is not None:
        views["views_overlap"] = overlap
        log.info("two views of a picture share %.0f %% of their cells", 100 * overlap)
    if several and config.decorrelation_weight:
        size = min(config.batch_size, images)
        regular = CrossViewDecorrelationLoss(config.off_diagonal_weight, config.decorrelation_form)
        views["decorrelation_floor"] = regular.floor(size, model.config.embed_dim)
        log.info("L_reg cannot fall below %.4f in batches of %d", views["decorrelation_floor"], size)
    if config.frozen_epochs and model.image_encoder.frozen and model.text_encoder.frozen:
        log.warning("train.frozen_epochs does nothing: both encoders are frozen (model.*_encoder.frozen)")
    if config.precision == "fp16" and model.device.type == "cpu":
        log.warning("fp16 is slow on a CPU: train.precision=bf16 where the processor has it, or fp32")
    if val.dataset.num_images < SMALL_VALIDATION:
        log.warning(
            "only %d validation pictures choose the epoch: the choice is mostly chance below some %d",
            val.dataset.num_images,
            SMALL_VALIDATION,
        )
    return {
        "steps_an_epoch": steps,
        **views,
        "data": counts,
        "skipped": [[skip.name, skip.reason] for skip in skipped],
        "device": str(model.device),
        "processes": parallel.world(),
        "checkpoint_minutes": config.checkpoint_minutes,
    }


def views_overlap(model: AVSE, train: Train) -> float | None:
    """Measure what two training views share: over drawn ones, or over the first pictures where they are learnt."""
    encoder, groups = model.image_encoder, model.groups
    if groups is None:
        return round(model.sampling.overlap(encoder.grid), 4)
    if isinstance(train, PairShards):
        return None
    model.eval()
    groups.train()
    with torch.inference_mode():
        seen = train.images.batch(range(min(64, train.dataset.num_images))).to(model.device)
        tokens = encoder(seen) if seen.ndim == 4 else seen
        chosen = groups(tokens[:, encoder.num_prefix :])[0].cpu()
        return round(mean_overlap(chosen, encoder.grid[0] * encoder.grid[1]), 4)


def learn_calibration(model: AVSE, val: Inputs, *, shared: bool = False) -> Calibration | None:
    """Score validation once more, in the precision of searches, and learn which answers are weak; None: too few texts.

    Args:
        model: with the weights that are kept.
        val: the validation split, open for it.
        shared: as in `avse.evaluate.evaluate`.
    """
    scored = score([(model, val, {})], shared=shared)
    try:
        return calibration_of(scored)
    except CalibrationError as error:
        log.info("answers will not be marked as weak: %s", error)
        return None


def figures(report: RetrievalReport) -> dict[str, Any]:
    """Return the validation figures that an entry of the history holds."""
    aware = report.duplicate_aware
    return {
        "rsum": report.rsum,
        "i2t": {f"r{k}": value for k, value in report.i2t.recalls.items()},
        "t2i": {f"r{k}": value for k, value in report.t2i.recalls.items()},
        "duplicate_aware_rsum": aware.rsum if aware else None,
    }
