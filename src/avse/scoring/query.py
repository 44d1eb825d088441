"""One or few queries against many documents in int8, at the speed of reading them: numkong's kernels, no torch.

Knows no index; `look_again` finds out which rows must be scored exactly, and the caller scores them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numkong
import numpy as np
from numpy.typing import NDArray

from avse.scoring.int8 import LARGEST, SAMPLE, Quantised, band, error_of

Side = Literal["images", "texts"]
_ROWS = 8192
"""Documents of one tile: their products with a few query blocks stay in the cache."""


def scan(query: NDArray[np.float32], documents: Quantised, documents_are: Side = "images") -> NDArray[np.float32]:
    """Score one query against every document, approximately.

    Args:
        query: (R, C) float32, of any length.
        documents: n of B blocks; a mapped file is read once, from one end to the other.
        documents_are: "images": Σ_r max_b <v_b, q_r>, "texts": Σ_b max_r <q_r, t_b>.

    Returns:
        (n,) float32; the error comes from rounding to int8 alone, for the products are exact.

    Raises:
        ValueError: Other shapes, or a query that holds NaN or infinity.

    >>> from avse.scoring import quantise
    >>> pictures = np.array([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.8, 0.6]]], np.float32)
    >>> [f"{score:.1f}" for score in scan(np.array([[1.0, 0.0]], np.float32), quantise(pictures))]
    ['1.0', '0.8']
    """
    values = documents.values
    if query.ndim != 2 or values.shape[2] != query.shape[1] or not len(query):
        raise ValueError(f"a query of shape {query.shape}, documents (B, n, C) {values.shape}: (R, C) is wanted")
    # An image sums over the query's blocks, which may each have a step; a text compares them, so they share one.
    lengths = np.abs(query).max(axis=1 if documents_are == "images" else None, keepdims=True)
    if not np.isfinite(lengths).all():
        raise ValueError("the query holds NaN or infinity, numbers are wanted")
    steps = np.where(lengths > 0, lengths, 1).astype(np.float32) / np.float32(LARGEST)
    packed = numkong.dots_pack(np.rint(query / steps).astype(np.int8))
    scales = np.broadcast_to(steps, (len(query), 1))[:, 0] * np.float32(documents.step)
    scores = np.empty(values.shape[1], np.float32)
    rows = max(1, min(_ROWS, len(scores)))
    tiles = [numkong.zeros((rows, len(query)), dtype="int32") for _ in range(2)]
    for at in range(0, len(scores), rows):
        if len(scores) - at < rows:
            tiles = [numkong.zeros((len(scores) - at, len(query)), dtype="int32") for _ in range(2)]
        part = values[:, at : at + rows]
        if documents_are == "images":
            scores[at : at + rows] = _best_blocks(part, packed, tiles) @ scales
        else:
            scores[at : at + rows] = _best_queries(part, packed, tiles[0]) * scales[0]
    return scores


def look_again(
    rough: NDArray[np.float32],
    k: int,
    exact: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    *,
    sampled: int | None = None,
    slack: float = 0.0,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the rows that may be among the first k, ascending, with their exact scores.

    They lie within twice 6 sigma of the k-th approximate score, sigma of the error of a sample; where a row that was
    looked at is further off than that allows, the band is widened and all is looked at again.

    Args:
        rough: (n,) approximate scores, n at least 1.
        k: at least 1.
        exact: (r,) rows -> (r,) float32 scores.
        sampled: the sample is taken from so many first rows, at least 1; None: from all.
        slack: what the band is wider by.
    """
    sample = np.unique(np.linspace(0, (sampled or len(rough)) - 1, SAMPLE).astype(np.int64))
    width = band(error_of(rough[sample], exact(sample))) + slack
    kth = float(np.partition(rough, -k)[-k]) if k < len(rough) else -np.inf
    while True:
        rows = np.flatnonzero(rough >= kth - width)
        scores = exact(rows)
        worst = float(np.abs(rough[rows] - scores).max())
        if 2 * worst <= width or len(rows) == len(rough):
            return rows, scores
        width = 4 * worst  # the sample did not tell


def _best_blocks(part: NDArray[np.int8], packed: Any, tiles: list[Any]) -> NDArray[np.float32]:
    """Return (n, R) max_b <v_b, q_r> in steps."""
    best, other = (np.asarray(tile) for tile in tiles)
    numkong.dots_packed(part[0], packed, out=tiles[0])
    for block in part[1:]:
        numkong.dots_packed(block, packed, out=tiles[1])
        np.maximum(best, other, out=best)
    return best.astype(np.float32)


def _best_queries(part: NDArray[np.int8], packed: Any, tile: Any) -> NDArray[np.int32]:
    """Return (n,) Σ_b max_r <q_r, t_b> in steps."""
    total = np.zeros(part.shape[1], np.int32)
    for block in part:
        numkong.dots_packed(block, packed, out=tile)
        total += np.asarray(tile).max(axis=1)
    return total
