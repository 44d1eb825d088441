"""The score matrix against the einsum and max that research code uses. Knows random unit blocks, no model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from avse.benchmarks import interleaved
from avse.scoring import aeom

EINSUM = "einsum + max, 256 texts at a time"


def units(random: np.random.Generator, *shape: int) -> torch.Tensor:
    """Return random float32 vectors of length 1 over the last dimension."""
    values = torch.from_numpy(random.standard_normal(shape, dtype=np.float32))
    return torch.nn.functional.normalize(values, dim=-1)


def einsum_max(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """Score image blocks (n, P, C) against text blocks (m, Q, C) -> (n, m) as research code writes it."""
    parts = [torch.einsum("npc,mqc->nmqp", images, part).amax(-1).sum(-1) for part in torch.split(texts, 256)]
    return torch.cat(parts, dim=1)


def measure_scoring(
    images: int, texts: int, shape: tuple[int, int, int], *, runs: int = 7, threads: int = 1
) -> list[dict[str, Any]]:
    """Time both ways in turns; their agreement with float64 is checked first.

    Args:
        images: N.
        texts: M.
        shape: P, Q, C.
        runs: timed runs of each way, of which the median is taken.
        threads: threads of torch.

    Returns:
        One row a way: way, seconds, gflops, ratio (times as fast as the einsum way).

    Raises:
        RuntimeError: a way differs from float64.
    """
    blocks, queries, width = shape
    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    pictures, sentences = units(random, images, blocks, width), units(random, texts, queries, width)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "avse.scoring.aeom": lambda: aeom(pictures, sentences),
        EINSUM: lambda: einsum_max(pictures, sentences),
    }
    truth = einsum_max(pictures[:50].double(), sentences[:200].double())
    for name, way in ways.items():
        if (worst := float((way()[:50, :200] - truth).abs().max())) > 1e-5:
            raise RuntimeError(f"{name} differs from float64 by {worst:.1e}")
    medians = interleaved(ways, runs)
    work = 2 * images * texts * blocks * queries * width
    return [
        {
            "way": name,
            "seconds": round(seconds, 4),
            "gflops": round(work / seconds / 1e9, 1),
            "ratio": round(medians[EINSUM] / seconds, 2),
            "shape": [images, texts, blocks, queries, width],
            "threads": threads,
        }
        for name, seconds in medians.items()
    ]
