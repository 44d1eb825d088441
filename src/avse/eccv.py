"""ECCV Caption and CxC: more matches of COCO's test captions, with the ground truth and figures of `eccv-caption`.

Ties are counted against the system: of equal scores the non-matches are listed first, under each ground truth anew.
Two matches of ECCV Caption are a sixth caption of their image, which no protocol's gallery holds: its R-Precision and
mAP@R of a perfect model are a little below 100.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avse.data import PairDataset
from avse.extras import needs
from avse.ranks import first_k

KS = (1, 5, 10)
COLUMNS = 512
"""Columns of the scores copied at a time for the queries of texts."""


def load_metrics() -> Any:
    """Return the package's `Metrics`, which carries the ground truth.

    Raises:
        ImportError: the package is not installed.
    """
    with needs("eccv", "protocol eccv"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends a faster JSON reader
        from eccv_caption import Metrics
    return Metrics()


def check(dataset: PairDataset, metrics: Any = None) -> None:
    """Refuse data that are not COCO's 5,000 test images with the ids of images and captions.

    Raises:
        ValueError: ids are missing, or are others than those of the ground truth.
        ImportError: the package is not installed.
    """
    place = f"{dataset.name}, split {dataset.split}"
    for i, record in enumerate(dataset.records):
        if "cocoid" not in record or "caption_ids" not in record:
            raise ValueError(
                f"protocol eccv needs COCO's ids of images and captions (cocoid, caption_ids); {place} has none for "
                f"{dataset.image_ids[i]!r}: load COCO by Karpathy's dataset_coco.json"
            )
        if (ids := len(record["caption_ids"])) != (captions := len(dataset.captions_of(i))):
            raise ValueError(f"{place}, {dataset.image_ids[i]!r}: {ids} caption_ids for {captions} captions")
    truth = (metrics or load_metrics()).coco_gts
    images = {record["cocoid"] for record in dataset.records}
    captions_found = {caption for record in dataset.records for caption in record["caption_ids"]}
    for what, found, wanted in (("images", images, set(truth["i2t"])), ("captions", captions_found, set(truth["t2i"]))):
        if found != wanted:
            raise ValueError(
                f"protocol eccv is defined on COCO's {len(wanted):,} test {what}; {place} has {len(found & wanted):,} "
                f"of them and {len(found - wanted):,} others: take the Karpathy test split, whole"
            )


def figures(scores: np.ndarray, columns: np.ndarray, dataset: PairDataset) -> dict[str, dict[str, dict[str, float]]]:
    """Measure Recall@K of CxC and R@1, R-Precision and mAP@R of ECCV Caption.

    Args:
        scores: (N, k), image against distinct text.
        columns: (M,) the column of each caption.
        dataset: COCO's test split with its ids.

    Returns:
        "cxc" and "eccv" -> "i2t" and "t2i" -> measure -> percent.
    """
    metrics = load_metrics()
    check(dataset, metrics)
    images = np.array([record["cocoid"] for record in dataset.records], np.int64)
    texts = np.empty(dataset.num_pairs, np.int64)
    order = np.argsort(dataset.text_to_image, kind="stable")
    texts[order] = [caption for record in dataset.records for caption in record["caption_ids"]]
    cxc = _listed(scores, columns, images, texts, metrics.cxc_gts)
    found = {f"r{k}": metrics.cxc_recalls(cxc, "all", K=k) for k in KS}
    eccv = _listed(scores, columns, images, texts, metrics.eccv_gts)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar cannot be turned off
        measured = metrics.eccv_metrics(eccv, "all")
    names = {"eccv_r1": "r1", "eccv_rprecision": "r_precision", "eccv_map_at_r": "map_at_r"}
    named = {"cxc": found, "eccv": {short: measured[name] for name, short in names.items()}}
    return {
        name: {side: {key: 100 * float(both[side]) for key, both in values.items()} for side in ("i2t", "t2i")}
        for name, values in named.items()
    }


def _listed(
    scores: np.ndarray,
    columns: np.ndarray,
    images: np.ndarray,
    texts: np.ndarray,
    truth: Mapping[str, Mapping[int, Sequence[int]]],
) -> dict[str, dict[int, list[int]]]:
    """Return, for every query of a ground truth, as many ids as it looks at, best first, non-matches first in a tie."""
    lists: dict[str, dict[int, list[int]]] = {"i2t": {}, "t2i": {}}
    row_of = {image: row for row, image in enumerate(images.tolist())}
    text_of = {text: place for place, text in enumerate(texts.tolist())}
    for image, matches in truth["i2t"].items():
        right = [text_of[match] for match in matches if match in text_of]
        lists["i2t"][image] = _first(scores[row_of[image]][columns], right, texts, len(matches))
    queries = np.array([text_of[text] for text in truth["t2i"]])
    queries = queries[np.argsort(columns[queries], kind="stable")]
    for start in range(0, len(queries), COLUMNS):
        asked = queries[start : start + COLUMNS]
        for query, row in zip(asked, np.ascontiguousarray(scores[:, columns[asked]].T)):
            text = int(texts[query])
            right = [row_of[match] for match in truth["t2i"][text]]
            lists["t2i"][text] = _first(row, right, images, len(right))
    return lists


def _first(scores: np.ndarray, right: list[int], ids: np.ndarray, matches: int) -> list[int]:
    last = np.zeros(len(scores), bool)
    last[right] = True
    listed: list[int] = ids[first_k(scores, max(matches, KS[-1]), last)].tolist()
    return listed
