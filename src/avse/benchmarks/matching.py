"""What a pair costs: cosine at width V·D, AEOM, and SCAN's cross-attention; and how AEOM grows.

All ways are timed in turns in one run, after each agreed with float64. Knows random unit vectors, no model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from avse.benchmarks import interleaved, scan, units
from avse.scoring import aeom

WHY = {
    "C": "a pair costs P·Q·C multiply-adds, and P and Q are fixed: linear in C",
    "D": "C is fixed, so both block counts grow with D (P = V·D/C, Q = D/C) and P·Q·C = V·D²/C: quadratic in D",
    "gallery": "each image is one more row of the same cost: linear in N",
}
COSINE, AEOM, SCAN = "cosine, width V·D", "AEOM", "SCAN, a caption at a time"
TOLERANCE = 2e-5
"""Of a score against float64; scores are sums of a few cosines."""


@dataclass(frozen=True)
class Sizes:
    """What is timed; the defaults are the paper's sizes (D = 1,024, V = 2, 36 regions, 12 words)."""

    images: int = 256
    texts: int = 1280
    views: int = 2
    embed_dim: int = 1024
    block_width: int = 256
    regions: int = 36
    words: int = 12
    scan_batch: tuple[int, int] = (64, 16)
    """Images and captions of SCAN's batch; at these a pair of it is cheapest."""
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    """C at P, Q = 4, 2."""
    dims: tuple[int, ...] = (512, 1024, 2048, 4096)
    """D at C = block_width."""
    gallery: tuple[int, ...] = (1024, 2048, 4096, 8192)
    """N for some queries at a time."""
    queries: int = 64


@dataclass(frozen=True)
class _Draw:
    """Random unit vectors on a device."""

    random: np.random.Generator
    device: str

    def __call__(self, *shape: int) -> Tensor:
        return torch.from_numpy(units(self.random, *shape)).to(self.device)


class _Way(NamedTuple):
    """One thing to time: float32 and float64 of the same scores, and the pairs in it."""

    score: Callable[[], Tensor]
    truth: Callable[[], Tensor]
    pairs: int


def measure_matching(
    sizes: Sizes | None = None, *, runs: int = 7, threads: int = 1, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Time a pair in every way, and AEOM's growth in C, D and the gallery.

    Args:
        sizes: what is timed.
        runs: timed turns, of which the median is taken.
        threads: threads of torch.
        device: where the scores are computed, "cpu" or "cuda".

    Returns:
        Rows of two kinds. `measure: pair` has way, us_per_pair, against_cosine, against_aeom (times as dear).
        `measure: growth` has over, at, points ([size, µs a pair or, for the gallery, a query]), exponent (least squares
        in log-log) and why.

    Raises:
        RuntimeError: a way differs from float64.
    """
    sizes = sizes or Sizes()
    torch.set_num_threads(threads)
    random = np.random.default_rng(0)
    draw = _Draw(random, device)
    pairs = _pair_ways(sizes, draw)
    series = _growth_ways(sizes, draw)
    ways: dict[tuple[str, str | int], _Way] = {("pair", name): way for name, way in pairs.items()}
    for over, (_, points) in series.items():
        ways |= {(over, size): way for size, way in points.items()}
    for key, way in ways.items():
        if (worst := float((way.score() - way.truth()).abs().max())) > TOLERANCE:
            raise RuntimeError(f"{key} differs from float64 by {worst:.1e}, more than {TOLERANCE:.0e}")
    seconds = interleaved({key: way.score for key, way in ways.items()}, runs, device=device)
    cost = {key: value / ways[key].pairs * 1e6 for key, value in seconds.items()}
    rows: list[dict[str, Any]] = [
        {
            "measure": "pair",
            "way": name,
            "us_per_pair": round(cost["pair", name], 4),
            "against_cosine": round(cost["pair", name] / cost["pair", COSINE], 2),
            "against_aeom": round(cost["pair", name] / cost["pair", AEOM], 3),
            "threads": threads,
        }
        for name in pairs
    ]
    for over, (fixed, points) in series.items():
        found = [(size, cost[over, size] * (size if over == "gallery" else 1)) for size in points]
        rows.append(
            {
                "measure": "growth",
                "over": over,
                "at": fixed,
                "points": [[size, round(value, 4)] for size, value in found],
                "exponent": round(exponent(found), 3),
                "why": WHY[over],
                "threads": threads,
            }
        )
    return rows


def exponent(points: list[tuple[int, float]]) -> float:
    """Fit the exponent b of value = a·size^b by least squares over the logarithms.

    >>> round(exponent([(1, 3.0), (2, 12.0), (4, 48.0)]), 6)
    2.0
    """
    sizes, values = np.log(np.asarray(points, np.float64)).T
    return float(np.polyfit(sizes, values, 1)[0])


def _pair_ways(sizes: Sizes, draw: _Draw) -> dict[str, _Way]:
    """The ways of a pair: cosine, AEOM, and SCAN as published and in two other forms."""
    wide = sizes.views * sizes.embed_dim
    left, right = draw(sizes.images, wide), draw(sizes.texts, wide)
    blocks = wide // sizes.block_width, sizes.embed_dim // sizes.block_width
    ways = {
        COSINE: _Way(lambda: left @ right.T, lambda: left.double() @ right.double().T, sizes.images * sizes.texts),
        AEOM: _aeom_way(draw, sizes.images, sizes.texts, (*blocks, sizes.block_width)),
    }
    images, texts = sizes.scan_batch
    regions, words = draw(images, sizes.regions, sizes.embed_dim), draw(texts, sizes.words, sizes.embed_dim)
    few = regions[:8], words[:8]
    for name, way, inputs in (
        (SCAN, scan.scan_by_caption, (regions, words)),
        ("SCAN, all pairs in a batch", scan.scan_by_pairs, few),
        ("SCAN, through Gram matrices", scan.scan_by_gram, (regions, words)),
    ):
        truth = partial(scan.scan_by_caption, inputs[0].double(), inputs[1].double())
        ways[name] = _Way(partial(way, *inputs), truth, len(inputs[0]) * len(inputs[1]))
    return ways


def _growth_ways(sizes: Sizes, draw: _Draw) -> dict[str, tuple[str, dict[int, _Way]]]:
    """Series of AEOM: what grows -> (what stays, size -> way)."""
    width, views = sizes.block_width, sizes.views
    pair = partial(_aeom_way, draw, sizes.images, sizes.texts)
    paper = views * sizes.embed_dim // width, sizes.embed_dim // width, width
    shown = ",".join(map(str, paper))
    return {
        "C": ("P,Q = 4,2", {c: pair((4, 2, c)) for c in sizes.widths}),
        "D": (f"C = {width}, V = {views}", {d: pair((views * d // width, d // width, width)) for d in sizes.dims}),
        "gallery": (
            f"P,Q,C = {shown}, {sizes.queries} queries at a time",
            {n: _aeom_way(draw, n, sizes.queries, paper) for n in sizes.gallery},
        ),
    }


def _aeom_way(draw: _Draw, images: int, texts: int, shape: tuple[int, int, int]) -> _Way:
    blocks, queries, width = shape
    left, right = draw(images, blocks, width), draw(texts, queries, width)

    def truth() -> Tensor:
        """Einsum and max of the definition, in float64 and a few images at a time."""
        parts = [
            torch.einsum("npc,mqc->nmqp", part.double(), right.double()).amax(-1).sum(-1)
            for part in torch.split(left, 16)
        ]
        return torch.cat(parts)

    return _Way(lambda: aeom(left, right), truth, images * texts)
