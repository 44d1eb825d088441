"""Scores tile by tile on the CPU: never the whole matrix, in float32, bfloat16 or int8 (method, section 3).

A tile is some hundred images against some hundred texts. For each image block one matrix product with all text blocks
of the tile goes into a buffer that stays in the cache, a running maximum over the image blocks follows, then the sum
over the text blocks.
float32 goes through numpy; the others through torch, which is loaded only then. Knows no model and no index.

Threads: numpy's products run on OpenBLAS's threads, torch's on OpenMP's, never both at a time; the rest, and numkong,
runs on the caller's. Each library keeps a pool as large as the machine has cores; OMP_NUM_THREADS bounds both (where
OPENBLAS_NUM_THREADS says nothing else). OpenMP's threads go on waiting in a loop for a moment after a product, in
OpenBLAS's way; OMP_WAIT_POLICY=passive, which the command line sets, lets them sleep.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from avse.scoring.int8 import Quantised

Precision = Literal["fp32", "bf16", "int8"]
PRECISIONS = ("fp32", "bf16", "int8")
TILE = {"fp32": (512, 512), "bf16": (1024, 1024), "int8": (512, 1024)}
"""Images and text blocks of a tile, where there are so many texts."""
_MOST_IMAGES = 4096
"""Images of a tile against a few texts."""
NOT_FINITE = "some scores are not numbers: images or texts hold NaN or infinity"


@dataclass(frozen=True)
class Side:
    """One side's blocks, block outermost and cut into tiles."""

    length: int
    blocks: int
    part: Callable[[int, int], Any]
    """(first, last) -> (blocks, images, C), or (C, blocks x texts)."""


@dataclass(frozen=True)
class Arithmetic:
    """The three steps of a tile for one kind of number."""

    multiply: Callable[..., Any]
    larger: Callable[..., Any]
    empty: Callable[[tuple[int, int], bool], Any]
    """(shape, of the sum) -> buffer."""


def tile_shape(images: int, texts: int, text_blocks: int, precision: Precision) -> tuple[int, int]:
    """Return how many images and texts a tile has, of n images and m texts of Q blocks."""
    rows, columns = TILE[precision]
    width = max(1, columns // text_blocks)
    most = max(rows, min(_MOST_IMAGES, rows * columns // max(1, texts * text_blocks)))
    return (most, max(1, texts)) if texts <= width else (rows, width)


def score_tiles(
    images: NDArray[np.float32] | Quantised,
    texts: NDArray[np.float32] | Quantised,
    precision: Precision = "fp32",
    only: Callable[[int, int], bool] = lambda image, text: True,
) -> Iterator[tuple[slice, slice, NDArray[Any]]]:
    """Yield the score matrix in tiles, texts in the outer loop.

    Args:
        images: (n, P, C) float32; `Quantised` for int8.
        texts: (m, Q, C) float32; `Quantised` for int8.
        precision: how products are computed. int8 gives whole numbers, to be multiplied by both steps.
        only: tells by the first image and the first text of a tile whether it is wanted.

    Yields:
        Images, texts, and their scores (float32, or int32) in a buffer that the next tile overwrites. Equal arguments
        give the same tiles with the same bits.
    """
    rows, columns, arithmetic = _SIDES[precision](images, texts)
    step, width = tile_shape(rows.length, columns.length, columns.blocks, precision)
    buffers: dict[tuple[int, int], tuple[Any, Any, Any]] = {}
    for left in range(0, columns.length, width):
        right = min(left + width, columns.length)
        part = None
        for top in range(0, rows.length, step):
            if not only(top, left):
                continue
            bottom = min(top + step, rows.length)
            part = columns.part(left, right) if part is None else part
            shape = bottom - top, right - left
            if shape not in buffers:
                product = shape[0], shape[1] * columns.blocks
                buffers[shape] = (*(arithmetic.empty(product, False) for _ in range(2)), arithmetic.empty(shape, True))
            tile = _tile(rows.part(top, bottom), part, arithmetic, *buffers[shape])
            yield slice(top, bottom), slice(left, right), np.asarray(tile)


def _tile(images: Any, texts: Any, arithmetic: Arithmetic, best: Any, other: Any, total: Any) -> Any:
    """Score (P, a, C) against (C, Q b) into ``total`` (a, b)."""
    arithmetic.multiply(images[0], texts, out=best)
    for image in images[1:]:
        arithmetic.multiply(image, texts, out=other)
        arithmetic.larger(best, other, out=best)
    width = total.shape[1]
    total[:] = best[:, :width]
    for left in range(width, best.shape[1], width):
        total += best[:, left : left + width]
    return total


def _float32(images: Any, texts: Any) -> tuple[Side, Side, Arithmetic]:
    outermost, width = images.transpose(1, 0, 2), texts.shape[2]
    return (
        Side(len(images), images.shape[1], lambda first, last: outermost[:, first:last]),
        Side(len(texts), texts.shape[1], lambda first, last: texts[first:last].transpose(2, 1, 0).reshape(width, -1)),
        Arithmetic(np.matmul, np.maximum, lambda shape, of_sum: np.empty(shape, np.float32)),
    )


def _bfloat16(images: Any, texts: Any) -> tuple[Side, Side, Arithmetic]:
    if not fast("bf16"):
        return _float32(images, texts)
    import torch

    def part(blocks: Any, first: int, last: int) -> torch.Tensor:
        return as_tensor(blocks[first:last]).permute(1, 0, 2).to(torch.bfloat16).contiguous()

    def empty(shape: tuple[int, int], of_sum: bool) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.float32 if of_sum else torch.bfloat16)

    return (
        Side(len(images), images.shape[1], lambda first, last: part(images, first, last)),
        Side(len(texts), texts.shape[1], lambda first, last: part(texts, first, last).flatten(0, 1).T),
        Arithmetic(torch.mm, torch.maximum, empty),
    )


def _int8(images: Quantised, texts: Quantised) -> tuple[Side, Side, Arithmetic]:
    import torch

    pictures, sentences = images.values, texts.values
    return (
        Side(len(images), len(pictures), lambda first, last: as_tensor(pictures[:, first:last])),
        Side(len(texts), len(sentences), lambda first, last: as_tensor(sentences[:, first:last]).flatten(0, 1).T),
        Arithmetic(torch._int_mm, torch.maximum, lambda shape, of_sum: torch.empty(shape, dtype=torch.int32)),
    )


def as_tensor(part: NDArray[Any]) -> Any:
    """Return a tensor over the same memory; over a copy where torch takes it not: read-only, or backwards."""
    import torch

    return torch.from_numpy(part if part.flags.writeable and min(part.strides) >= 0 else part.copy())


def finite(tiles: Iterator[tuple[slice, slice, NDArray[Any]]]) -> Iterator[tuple[slice, slice, NDArray[Any]]]:
    """Pass tiles on.

    Raises:
        ValueError: a score is NaN or infinite.
    """
    for rows, columns, tile in tiles:
        if not np.isfinite([tile.min(initial=0), tile.max(initial=0)]).all():
            raise ValueError(NOT_FINITE)
        yield rows, columns, tile


_SIDES: dict[str, Callable[[Any, Any], tuple[Side, Side, Arithmetic]]] = {
    "fp32": _float32,
    "bf16": _bfloat16,
    "int8": _int8,
}


@functools.lru_cache
def fast(precision: Precision) -> bool:
    """Tell whether this processor multiplies matrices of ``precision`` faster than float32: measured once, in a moment.

    Processors without the instructions (AVX-512 VNNI and BF16, AMX, …) are tens of times slower, and float32 is more
    exact anyway.
    """
    import torch

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
    seconds = {}
    for kind in ("fp32", precision):
        blocks = torch.ones(256, 256, dtype=kinds[kind])
        multiply = torch._int_mm if kind == "int8" else torch.mm
        times = []
        for _ in range(4):
            started = time.perf_counter()
            multiply(blocks, blocks)
            times.append(time.perf_counter() - started)
        seconds[kind] = min(times)
    return precision == "fp32" or seconds[precision] < seconds["fp32"]
