"""Intervals by bootstrap over images with their captions, gallery fixed; paired differences (method, section 5).

Works on ranks; numpy alone. Images are drawn again inside their fold. Knows neither scores nor models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from avse.ranks import Ranks, hit_rates

KS = (1, 5, 10)


def resampled_recalls(
    seeds: Sequence[Ranks], resamples: int = 1000, seed: int = 0, ks: Sequence[int] = KS
) -> np.ndarray:
    """Bootstrap the mean recalls over training seeds: images with their captions are drawn again, the gallery is fixed.

    With several seeds the seeds are drawn again too, so that an interval holds the spread of training.

    Args:
        seeds: the ranks of one system on one test set, one entry a training seed.
        resamples: R.
        seed: of the draws; systems resampled with one seed are paired.
        ks: the K of the recalls.

    Returns:
        (R, 2, len(ks)) recalls in percent, i2t and t2i, each the mean of its folds.
    """
    first = seeds[0]
    queries, folds = first.image_of_query, first.folds_of(first.image_of_query)
    random = np.random.default_rng(seed)
    query_of_text = np.searchsorted(queries, first.image_of_text)
    captions = np.bincount(query_of_text, minlength=len(queries))
    found = np.zeros((len(seeds), resamples, 2, len(ks)))
    for fold in range(len(first.fold_starts)):
        part = np.flatnonzero(folds == fold)
        even = np.full(len(part), 1 / len(part))
        drawn = random.multinomial(len(part), even, size=resamples).astype(np.float64)
        texts_drawn = (drawn @ captions[part])[:, None]
        for recalls, ranks in zip(found, seeds):
            hits = np.stack([ranks.i2t[part] < k for k in ks], axis=1).astype(np.float64)
            recalls[:, 0] += 100 * (drawn @ hits) / len(part)
            hits = np.stack([np.bincount(query_of_text, ranks.t2i < k, len(queries))[part] for k in ks], axis=1)
            recalls[:, 1] += 100 * (drawn @ hits) / texts_drawn
    found /= len(first.fold_starts)
    picked = random.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=resamples) / len(seeds)
    means: np.ndarray = np.einsum("srdk,rs->rdk", found, picked)
    return means


def resampled_rsums(seeds: Sequence[Ranks], resamples: int = 1000, seed: int = 0, ks: Sequence[int] = KS) -> np.ndarray:
    """Bootstrap the mean rSum over training seeds: the sum of `resampled_recalls`, (R,) in percent."""
    rsums: np.ndarray = resampled_recalls(seeds, resamples, seed, ks).sum(axis=(1, 2))
    return rsums


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the central interval of bootstrap values.

    >>> [round(end) for end in interval(np.arange(101.0), 0.9)]
    [5, 95]
    """
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_difference(
    first: Sequence[Ranks], second: Sequence[Ranks], resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Compare two systems on one test set: difference of mean rSums, its interval and a two-sided bootstrap p.

    Args:
        first: ranks of the one system, one entry a training seed.
        second: ranks of the other, with as many seeds, on the same pairs.
        resamples: of the bootstrap.
        confidence: of the interval.
        seed: of the draws.

    Returns:
        {"mean", "ci", "p"}; p is at least 2 / (resamples + 1).

    Raises:
        ValueError: when the two were not measured on the same pairs or have other numbers of seeds.
    """
    return paired_differences(first, second, resamples, confidence, seed)["rsum"]


def paired_differences(
    first: Sequence[Ranks],
    second: Sequence[Ranks],
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    ks: Sequence[int] = KS,
) -> dict[str, dict[str, Any]]:
    """Compare two systems as `paired_difference` does, in rSum and in every recall on the same draws.

    Returns:
        "rsum", "i2t_r1", …, "t2i_r10" -> {"mean", "ci", "p"}.

    Raises:
        ValueError: as in `paired_difference`.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} seeds of one system against {len(second)} of the other: pair them")
    for ranks in (*first, *second):
        for facts in ("image_of_text", "fold_starts"):
            if not np.array_equal(getattr(ranks, facts), getattr(first[0], facts)):
                raise ValueError("the two systems were measured on different pairs; evaluate both on one test set")
    means = np.mean([hit_rates(r, ks) for r in first], axis=0) - np.mean([hit_rates(r, ks) for r in second], axis=0)
    drawn = resampled_recalls(first, resamples, seed, ks) - resampled_recalls(second, resamples, seed, ks)
    names = [f"{side}_r{k}" for side in ("i2t", "t2i") for k in ks]
    differences = {"rsum": _difference(means.sum(), drawn.sum(axis=(1, 2)), confidence)}
    for name, mean, values in zip(names, means.ravel(), drawn.reshape(resamples, -1).T):
        differences[name] = _difference(mean, values, confidence)
    return differences


def _difference(mean: float, drawn: np.ndarray, confidence: float) -> dict[str, Any]:
    drawn = np.round(drawn, 9)  # equal sums of recalls differ in their last bits
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return {
        "mean": float(mean),
        "ci": list(interval(drawn, confidence)),
        "p": float(min(1.0, 2 * (tail + 1) / (len(drawn) + 1))),
    }
