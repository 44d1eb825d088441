"""One or few queries against many documents in int8, at the speed of reading them: numkong's kernels, no torch.

Knows no index; what belongs to the first k by these scores is looked at again by the caller (`avse.scoring.int8.band`).
"""

from __future__ import annotations

from typing import Any, Literal

import numkong
import numpy as np
from numpy.typing import NDArray

from avse.scoring.int8 import LARGEST, Quantised

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
