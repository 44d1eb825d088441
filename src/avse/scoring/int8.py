"""Blocks in one byte a number with one step for all, and what that costs a score. Knows no model and no index.

The step is the largest number / 127, so nothing is cut off; products of such blocks are exact in int32, and a score is
their sum times both steps. The error of a score is close to normal; `error_of` takes its size from a sample, and a
band of twice six sigma keeps every row that may still belong to the first k.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LARGEST = 127
SIGMAS = 6.0
SAMPLE = 256
_ROWS = 4096
_LEAST = 1e-30
"""Largest number of blocks that are all zero, or as good as zero."""


@dataclass(frozen=True)
class Quantised:
    """n embeddings of B blocks in int8, block outermost, so that a maximum over blocks runs along memory."""

    values: NDArray[np.int8]
    """(B, n, C)."""
    step: float
    """What 1 stands for."""
    blocks: NDArray[np.float32] | None = None
    """(n, B, C) what they were made of, for an exact second look; None where that is kept elsewhere."""

    def __len__(self) -> int:
        """Return n."""
        return self.values.shape[1]


def quantise(blocks: NDArray[np.float32], out: NDArray[np.int8] | None = None) -> Quantised:
    """Round blocks to int8.

    Args:
        blocks: (n, B, C) floats; a memory-mapped file is read twice, part by part.
        out: (B, n, C) int8 where to write, such as a mapped file; None makes an array.

    Raises:
        ValueError: no (n, B, C), NaN or infinity in it, or ``out`` has another shape or type.

    >>> made = quantise(np.array([[[1.0, 0.0], [0.6, -0.8]]], np.float32))
    >>> made.values.tolist(), round(made.step * 127, 6)
    ([[[127, 0]], [[76, -102]]], 1.0)
    """
    if blocks.ndim != 3:
        raise ValueError(f"blocks of shape {blocks.shape}, (n, blocks, C) is wanted")
    count, number, width = blocks.shape
    parts = range(0, count, _ROWS)
    largest = float(np.max([_LEAST, *(np.abs(blocks[at : at + _ROWS]).max(initial=0) for at in parts)]))  # keeps NaN
    if not np.isfinite(largest):
        raise ValueError("blocks hold NaN or infinity, numbers are wanted")
    step = largest / LARGEST
    values = np.empty((number, count, width), np.int8) if out is None else out
    if values.shape != (number, count, width) or values.dtype != np.int8:
        raise ValueError(f"out is {values.dtype} {values.shape}, int8 {(number, count, width)} is wanted")
    for at in parts:
        scaled = blocks[at : at + _ROWS].transpose(1, 0, 2) * np.float32(1 / step)
        values[:, at : at + _ROWS] = np.clip(np.rint(scaled, out=scaled), -LARGEST, LARGEST, out=scaled)
    return Quantised(values, step, blocks)


def error_of(approximate: NDArray[np.float32], exact: NDArray[np.float32]) -> float:
    """Return the size sigma of the error (root mean square) of scores whose exact values are known."""
    return float(np.sqrt(np.mean(np.square(approximate.astype(np.float64) - exact)))) if len(exact) else 0.0


def band(sigma: float) -> float:
    """Return how far below the k-th approximate score a row may lie and still be looked at again: twice 6 sigma."""
    return 2 * SIGMAS * sigma
