"""Protocols: what is measured on the scores of one system on one split, and which data they are defined for.

Knows scores, captions and ids; neither models nor files. ECCV Caption and CxC are in `avse.eccv`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np

from avse import eccv
from avse.calibration import FALSE_ACCEPTS, Calibration, calibrate
from avse.data import PairDataset
from avse.metrics import RetrievalReport, retrieval_metrics, with_intervals

log = logging.getLogger(__name__)

SIZES = {"flickr30k-1k": 1000, "coco-5k": 5000, "coco-1k": 5000}
"""Protocol -> the number of images it is defined on."""
CAPTIONS, COCO_FOLDS = 5, 5
COCO_IDS = "baab55c72b3dfc21360e0ff4fda07f11c8318ef71296ecf0b1eaa4558a1dff05"
"""SHA-256 of the ids of Karpathy's test images, ascending, with a space between: val2017 has 5,000 images too."""
PROTOCOLS: dict[str, str] = {
    "plain": "all images of the split against all captions",
    "flickr30k-1k": "plain, on the 1,000 test images of Flickr30K, five captions each",
    "coco-5k": "plain, on the 5,000 test images of COCO, five captions each",
    "coco-1k": "the mean of five folds of 1,000 images, in order",
    "eccv": "coco-5k with ECCV Caption and CxC beside it",
}
"""Name -> what it is."""


@dataclass(frozen=True)
class Scored:
    """The scores of one system on one split: all that a protocol needs."""

    scores: np.ndarray
    """(N, k) float, image against distinct text."""
    dataset: PairDataset
    """The N images with their M captions."""
    columns: np.ndarray
    """(M,) int64, the column of each caption: `text_groups` of the captions."""
    meta: dict[str, Any]
    """What the figures stand with."""


def calibration_of(scored: Scored, false_accepts: float = FALSE_ACCEPTS) -> Calibration:
    """Learn from the scores of a validation split which answers are weak; errors as in `avse.calibration.calibrate`."""
    dataset = scored.dataset
    facts = {"dataset": dataset.name, "split": dataset.split, "images": dataset.num_images}
    facts |= {"captions": dataset.num_pairs, "precision": scored.meta.get("precision")}
    return calibrate(
        scored.scores,
        dataset.text_to_image,
        dataset.captions,
        false_accepts=false_accepts,
        facts=facts,
        columns=scored.columns,
    )


def fitting_protocols(dataset: PairDataset) -> tuple[str, ...]:
    """Return the protocols that are measured when none is named: both of COCO on its test images, else plain."""
    if _digest(dataset) == COCO_IDS:
        return "coco-5k", "coco-1k"
    lacking = SIZES["coco-5k"] - dataset.num_images
    if _digest(dataset) and 0 < lacking <= len(dataset.skipped):
        log.warning("plain alone: of COCO's %d images %d cannot be used", SIZES["coco-5k"], lacking)
    return ("plain",)


def _digest(dataset: PairDataset) -> str:
    """Return the SHA-256 of COCO's ids of the images, as for `COCO_IDS`; empty when one has none."""
    ids = sorted(record["cocoid"] for record in dataset.records if "cocoid" in record)
    return sha256(" ".join(map(str, ids)).encode()).hexdigest() if len(ids) == dataset.num_images else ""


def prepare(names: Sequence[str], dataset: PairDataset) -> PairDataset:
    """Return the data as the protocols take them, before anything is encoded: the field's take five captions an image.

    Raises:
        ValueError: an unknown name, other images than the protocol's by number or ids, fewer captions, or what
            `eccv.check` refuses.
        ImportError: eccv without the package.
    """
    for name in names:
        if name not in PROTOCOLS:
            raise ValueError(f"no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    if set(names) - {"plain"}:
        dataset = _five_captions(dataset)
    for name in names:
        if name in SIZES:
            _refuse_others(name, dataset)
        if name == "eccv":
            eccv.check(dataset)
    return dataset


def why_not(name: str, dataset: PairDataset) -> str:
    """Say why a protocol cannot be measured on a split, empty where it can."""
    try:
        prepare([name], dataset)
    except (ValueError, ImportError) as error:
        return str(error)
    return ""


def _five_captions(dataset: PairDataset) -> PairDataset:
    if int(np.bincount(dataset.text_to_image).max()) <= CAPTIONS:
        return dataset
    cut = dataset.first_captions(CAPTIONS)
    left, every = dataset.num_pairs - cut.num_pairs, dataset.num_pairs
    log.info("the first %d captions of an image are taken: %d of %d are left out", CAPTIONS, left, every)
    return cut


def _refuse_others(name: str, dataset: PairDataset) -> None:
    """Raise ValueError unless a protocol of the field is defined on a split."""
    place = f"{dataset.name}, split {dataset.split}"
    if dataset.num_images != SIZES[name]:
        left_out = f" ({len(dataset.skipped)} left out)" if dataset.skipped else ""
        raise ValueError(
            f"protocol {name} is defined on {SIZES[name]:,} test images; {place}, has {dataset.num_images:,} images"
            f"{left_out}: take another split, such as testall, or --protocol plain"
        )
    counts = np.bincount(dataset.text_to_image, minlength=dataset.num_images)
    if few := np.flatnonzero(counts < CAPTIONS).tolist():
        raise ValueError(
            f"protocol {name} takes {CAPTIONS} captions an image; {place}, has {len(few):,} images with fewer, as "
            f"{dataset.image_ids[few[0]]!r} with {counts[few[0]]}: mend its captions, or take --protocol plain"
        )
    if name.startswith("coco") and _digest(dataset) not in ("", COCO_IDS):
        raise ValueError(
            f"protocol {name} is defined on Karpathy's test images of COCO; {place}, has as many, but others by their "
            "ids: take --protocol plain"
        )


def measure(
    scored: Scored, protocol: str = "plain", *, bootstrap: int = 1000, confidence: float = 0.95
) -> RetrievalReport:
    """Measure scores by a protocol, plain with duplicate-aware beside it.

    Args:
        scored: the scores of a data set that `prepare` returned.
        protocol: one of `PROTOCOLS`.
        bootstrap: resamples for the intervals; 0: none.
        confidence: of the intervals.

    Raises:
        ValueError: as in `prepare`, or data that it would still cut.
    """
    dataset = scored.dataset
    if prepare([protocol], dataset) is not dataset:
        raise ValueError(f"protocol {protocol} takes {CAPTIONS} captions an image: score what prepare() returns")
    report = retrieval_metrics(
        scored.scores,
        dataset.text_to_image,
        texts=dataset.captions,
        meta={**scored.meta, "protocol": protocol},
        columns=scored.columns,
        folds=COCO_FOLDS if protocol == "coco-1k" else 1,
    )
    if protocol == "eccv":
        report = replace(report, further=eccv.figures(scored.scores, scored.columns, dataset))
    return with_intervals(report, bootstrap, confidence) if bootstrap else report
