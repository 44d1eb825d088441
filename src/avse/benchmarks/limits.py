"""What this machine can do at most: its matrix products and its reading of memory, as its libraries reach them.

Knows no scores. The figures stand beside every way of scoring, timed in the same turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

SHAPES = ((1024, 256, 512), (512, 256, 1024), (1024, 1024, 1024))
"""Rows, inner width and columns of a product: tiles of a score matrix, and a cube."""
_WORK = 1e9
"""Operations of one turn at least: a product alone is too short to be timed."""


class Limit(NamedTuple):
    """One thing to time and the operations, or bytes, in it."""

    run: Callable[[], None]
    work: float


def products() -> dict[tuple[str, str], Limit]:
    """Return matrix products by library with precision and by shape, into memory that is there already."""
    random = np.random.default_rng(0)
    found: dict[tuple[str, str], Limit] = {}
    for m, k, n in SHAPES:
        left, right = random.standard_normal((m, k), np.float32), random.standard_normal((k, n), np.float32)
        operations, shape = 2 * m * k * n, f"{m} x {k} x {n}"
        times = int(np.ceil(_WORK / operations))
        a, b = torch.from_numpy(left), torch.from_numpy(right)
        runs: dict[str, Callable[[], object]] = {
            "numpy fp32": _numpy(left, right),
            "torch fp32": _torch(torch.mm, a, b, torch.float32),
            "torch bf16": _torch(torch.mm, a.bfloat16(), b.bfloat16(), torch.bfloat16),
            "torch int8": _torch(torch._int_mm, (30 * a).char(), (30 * b).char(), torch.int32),
        }
        for name, run in runs.items():
            found[name, shape] = Limit(_repeated(run, times), times * operations)
    return found


def reads(values: NDArray[np.float32]) -> dict[str, Limit]:
    """Return ways to read the values from memory once: sums that keep nothing."""
    flat = values.reshape(-1)
    tensor = torch.from_numpy(flat)

    def dot() -> None:
        flat @ flat

    return {"numpy dot": Limit(dot, values.nbytes), "torch sum": Limit(lambda: _drop(tensor.sum()), values.nbytes)}


def _drop(_: object) -> None:
    """Take a value and keep nothing."""


def _numpy(left: NDArray[np.float32], right: NDArray[np.float32]) -> Callable[[], object]:
    out = np.empty((len(left), right.shape[1]), np.float32)
    return lambda: np.matmul(left, right, out=out)


def _torch(
    product: Callable[..., torch.Tensor], a: torch.Tensor, b: torch.Tensor, kind: torch.dtype
) -> Callable[[], object]:
    out = torch.empty((len(a), b.shape[1]), dtype=kind)
    return lambda: product(a, b, out=out)


def _repeated(run: Callable[[], object], times: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(times):
            run()

    return repeated
