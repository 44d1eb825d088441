"""What an exact search costs in each store, with a condition that a tenth of the entries meet and without.

Knows random unit blocks, no model and no picture.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avse.benchmarks import in_process, interleaved
from avse.benchmarks.queries import units
from avse.index import Hit, Index

STORES = ("embedded", "memory")
WHERE = "digit = 3"
"""A tenth of the entries: the last digit of their number."""
TOLERANCE = 1e-5
"""Of a score against float64."""
_PART = 2000
_ASKED = 5


class _Blocks:
    """In the place of a model: the shape of its blocks."""

    fingerprint, folder = "random blocks", None

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.num_image_blocks, self.num_text_blocks, self.block_width = shape

    def encode_images(self, images: list[Any], /) -> NDArray[np.float32]:
        raise NotImplementedError

    def encode_texts(self, texts: list[str], /) -> NDArray[np.float32]:
        raise NotImplementedError


def measure_stores(
    entries: int = 50000, shape: tuple[int, int, int] = (8, 4, 256), *, k: int = 10, runs: int = 7, threads: int = 1
) -> list[dict[str, Any]]:
    """Ask every store the same, exact, in turns.

    Args:
        entries: images in each, at least 10.
        shape: P, Q, C.
        k: how many are found.
        runs: timed turns, of which the median is taken.
        threads: cores and threads of the process.

    Returns:
        A row `measure: store` a store and condition: store, where (None: no condition), entries, found, seconds a
        query, error (largest difference of a score from float64).

    Raises:
        RuntimeError: a store's first k are not those of float64.
    """
    return in_process(threads, _measure, entries, shape, k, runs, threads)


def _measure(entries: int, shape: tuple[int, int, int], k: int, runs: int, threads: int) -> list[dict[str, Any]]:
    blocks, queries = units(0, entries, shape[0], shape[2]), units(1, _ASKED, shape[1], shape[2])
    truth = _truth(blocks, queries)
    ways: dict[tuple[str, str | None], Callable[[], list[list[Hit]]]] = {}
    with TemporaryDirectory() as temporary, ExitStack() as stack:
        for store in STORES:
            index = stack.enter_context(Index.create(Path(temporary) / store, _Blocks(shape), store=store))
            for at in range(0, entries, _PART):
                numbers = range(at, min(at + _PART, entries))
                part = slice(numbers.start, numbers.stop)
                index.add_embeddings([str(i) for i in numbers], blocks[part], [{"digit": i % 10} for i in numbers])
            for where in (WHERE, None):
                ways[store, where] = partial(_ask, index, queries, k, where)
        errors = {key: _check(f"{key[0]}, {key[1]}", way(), truth, key[1], k) for key, way in ways.items()}
        seconds = interleaved(ways, runs)
    return [
        {
            "measure": "store",
            "store": store,
            "where": where,
            "entries": entries,
            "shape": list(shape),
            "k": k,
            "seconds": round(seconds[store, where] / _ASKED, 6),
            "error": errors[store, where],
            "threads": threads,
        }
        for store, where in ways
    ]


def _ask(index: Index, queries: NDArray[np.float32], k: int, where: str | None) -> list[list[Hit]]:
    return [index.search(embedding=query, k=k, where=where) for query in queries]


def _truth(blocks: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return S (queries, entries) of the definition in float64, some entries at a time."""
    wide = queries.astype(np.float64)
    parts = [
        np.einsum("npc,mqc->mnqp", blocks[at : at + _PART].astype(np.float64), wide, optimize=True).max(-1).sum(-1)
        for at in range(0, len(blocks), _PART)
    ]
    return np.concatenate(parts, axis=1)


def _check(what: str, found: list[list[Hit]], truth: NDArray[np.float64], where: str | None, k: int) -> float:
    """Return the largest difference of a score from float64 at the same id and at the same place."""
    allowed = np.arange(truth.shape[1])[3::10] if where else np.arange(truth.shape[1])
    worst = 0.0
    for hits, row in zip(found, truth, strict=True):
        best = np.sort(row[allowed])[::-1][:k]
        numbers, scores = np.array([int(hit.id) for hit in hits]), np.array([hit.score for hit in hits])
        if len(hits) != len(best) or not np.isin(numbers, allowed).all() or len(set(numbers)) != len(numbers):
            raise RuntimeError(f"{what}: {len(hits)} hits, {len(best)} were expected, of those that meet the condition")
        worst = max(worst, float(np.abs(scores - row[numbers]).max()), float(np.abs(scores - best).max()))
    if worst > TOLERANCE:
        raise RuntimeError(f"{what} differs from float64 by {worst:.1e}, more than {TOLERANCE:.0e}")
    return worst
