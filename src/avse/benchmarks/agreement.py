"""Whether a way of scoring says what float64 says: checked before anything is timed. Knows numpy arrays alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
TOLERANCES = {"fp32": 1e-5, "bf16": 2e-2, "int8": 1e-5}
"""Largest error of a score of four text blocks; int8 is looked at again in float32."""
TIE = 2e-6
"""Scores of four text blocks that lie so close are a tie in float32."""
SAMPLE = 64
"""Queries whose scores are known in float64."""
_PAIRS = 2048


def tolerance(precision: str, text_blocks: int) -> float:
    """Return the largest error of a score that sums so many cosines."""
    return TOLERANCES[precision] * max(1.0, text_blocks / 4)


def sample(length: int) -> NDArray[np.int64]:
    """Return rows all over, the first and the last among them."""
    return np.unique(np.linspace(0, length - 1, SAMPLE).astype(np.int64))


def matrix(images: Array, texts: Array) -> NDArray[np.float64]:
    """Score images (n, P, C) against texts (m, Q, C) -> (n, m) in float64, a few images at a time."""
    columns = texts.astype(np.float64).reshape(-1, texts.shape[2]).T
    step = max(1, 2**24 // (images.shape[1] * columns.shape[1]))
    parts = []
    for at in range(0, len(images), step):
        products = images[at : at + step].astype(np.float64) @ columns
        parts.append(products.max(axis=1).reshape(len(products), *texts.shape[:2]).sum(-1))
    return np.concatenate(parts)


def pairs(images: Array, texts: Array, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Score image rows[i] against text columns[i] in float64; both of any one shape, which the result has."""
    flat = rows.reshape(-1), columns.reshape(-1)
    scores = np.empty(len(flat[0]))
    for at in range(0, len(scores), _PAIRS):
        left, right = images[flat[0][at : at + _PAIRS]], texts[flat[1][at : at + _PAIRS]]
        products = left.astype(np.float64) @ right.astype(np.float64).transpose(0, 2, 1)
        scores[at : at + _PAIRS] = products.max(axis=1).sum(axis=1)
    return scores.reshape(rows.shape)


def check(way: str, found: NDArray[np.float32], truth: NDArray[np.float64], allowed: float) -> float:
    """Return the largest difference from the truth.

    Raises:
        RuntimeError: the shapes differ, or the difference is larger than allowed or no number.
    """
    if found.shape != truth.shape:
        raise RuntimeError(f"{way} gives scores of shape {found.shape}, float64 {truth.shape}")
    worst = float(np.abs(found - truth).max(initial=0.0))
    if not worst <= allowed:
        raise RuntimeError(f"{way} differs from float64 by {worst:.1e}, more than {allowed:.0e}")
    return worst


def check_first(way: str, found: tuple[Array, NDArray[np.int64]], truth: NDArray[np.float64], allowed: float) -> float:
    """Check the first k of some queries against all their scores.

    Args:
        way: its name.
        found: (q, k) scores and documents.
        truth: (q, n) in float64.
        allowed: error of a score; two documents may change places when their scores lie within twice as much.

    Returns:
        The largest difference of a score from the truth's score of the same document.

    Raises:
        RuntimeError: more differs, a document stands twice, or better ones are missing.
    """
    scores, documents = found
    own = np.take_along_axis(truth, documents, axis=1)
    worst = check(way, scores, own, allowed)
    if any(len(set(row)) < len(row) for row in documents.tolist()):
        raise RuntimeError(f"{way} gives a document twice")
    missed = float((best_scores(truth, scores.shape[1]) + np.sort(-own, axis=1)).max(initial=0.0))
    if not missed <= 2 * allowed:
        raise RuntimeError(f"{way} leaves out documents whose scores are higher by {missed:.1e}")
    return worst


def best_scores(truth: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return the k highest of each row (q, n), highest first."""
    return -np.sort(np.partition(-truth, k - 1, axis=1)[:, :k], axis=1)


def differing_ids(documents: NDArray[np.int64], truth: NDArray[np.float64], text_blocks: int) -> float:
    """Return the share of queries whose documents (q, k) are not the first k of all scores (q, n), ties aside."""
    own = np.take_along_axis(truth, documents, axis=1)
    return differing(own, best_scores(truth, documents.shape[1]), text_blocks)


def differing(scores: NDArray[np.float64], others: NDArray[np.float64], text_blocks: int) -> float:
    """Return the share of rows whose first k differ, ties aside: float64 scores (q, k) of what each found."""
    apart = np.abs(np.sort(scores, axis=1) - np.sort(others, axis=1)).max(axis=1, initial=0.0)
    return float((apart > TIE * max(1.0, text_blocks / 4)).mean())
