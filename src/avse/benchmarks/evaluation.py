"""The whole of an evaluation on random embeddings of COCO's size: seconds and peak memory, in a process of its own.

Knows scores and protocols; what encoding pictures and sentences costs is not part of it.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from avse.benchmarks import in_process, peak_bytes, units
from avse.data import PairDataset

SHARED = 100
"""One caption of so many is a text that stands on another image too."""


def measure_evaluation(
    images: int = 5000,
    captions: int = 5,
    shape: tuple[int, int, int] = (8, 4, 256),
    *,
    resamples: int = 1000,
    threads: int = 2,
) -> dict[str, Any]:
    """Score random unit blocks and measure them plainly and by five folds, duplicate-aware beside, with intervals.

    Args:
        images: N, a multiple of five.
        captions: captions an image.
        shape: P, Q, C.
        resamples: of the bootstrap.
        threads: threads of the matrix products.

    Returns:
        One row: seconds of each part and in all, peak_mib of the process with everything that it imports, and what
        was measured.

    Raises:
        ValueError: five folds do not divide the images.
    """
    return {**in_process(threads, _measure, images, captions, shape, resamples), "threads": threads}


def _measure(images: int, captions: int, shape: tuple[int, int, int], resamples: int) -> dict[str, Any]:
    from avse.evaluate import add_scores
    from avse.metrics import retrieval_metrics, with_intervals
    from avse.protocols import COCO_FOLDS
    from avse.ranks import fold_starts
    from avse.texts import text_groups

    fold_starts(images, COCO_FOLDS)  # refuses a number that folds do not divide, before the work
    blocks, queries, width = shape
    dataset = _dataset(images, captions)
    columns = text_groups(dataset.captions)
    random = np.random.default_rng(0)
    pictures = units(random, images, blocks, width)
    texts = units(random, int(columns.max()) + 1, queries, width)
    times = [time.perf_counter()]
    scores = add_scores(None, pictures, texts)
    times.append(time.perf_counter())
    rsums = {}
    for name, folds in (("plain", 1), ("folds", COCO_FOLDS)):
        report = retrieval_metrics(scores, dataset.text_to_image, texts=dataset.captions, columns=columns, folds=folds)
        rsums[name] = with_intervals(report, resamples).rsum
        times.append(time.perf_counter())
    parts = dict(zip(("scores", "plain", "folds"), np.diff(times).round(2).tolist()))
    return {
        "images": images,
        "captions": len(dataset.captions),
        "distinct_texts": len(texts),
        "shape": list(shape),
        "resamples": resamples,
        "seconds": round(times[-1] - times[0], 2),
        "parts": parts,
        "peak_mib": round(peak_bytes() / 2**20),
        "rsum": rsums,
    }


def _dataset(images: int, captions: int) -> PairDataset:
    """Make captions of which one in `SHARED` stands, word for word, on the image before too."""
    texts = [f"caption {i}" for i in range(images * captions)]
    for i in range(captions + SHARED - 1, len(texts), SHARED):
        texts[i] = texts[i - captions]
    ids = tuple(f"{i:06}.jpg" for i in range(images))
    return PairDataset(
        "random",
        "test",
        Path(),
        ids,
        tuple(map(Path, ids)),
        tuple(texts),
        np.repeat(np.arange(images, dtype=np.int64), captions),
        (),
        ({},) * images,
    )
