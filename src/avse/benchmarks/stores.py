"""What an exact search costs in each store, with a condition that a tenth of the entries meet and without.

Knows random unit blocks, no model and no picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avse.benchmarks import in_process, interleaved, units
from avse.index import Hit, Index

STORES = ("embedded", "memory")
WHERE = "digit = 3"
"""A tenth of the entries: the last digit of their number."""
TOLERANCE = 1e-5
"""Of a score against float64."""
_PART = 2000
_ASKED = 5


class _Blocks:
    """In the place of a model: random blocks of its shape, whatever is encoded."""

    fingerprint, folder = "random blocks", None

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.num_image_blocks, self.num_text_blocks, self.block_width = shape

    def encode_images(self, images: list[Any], /) -> NDArray[np.float32]:
        return units(0, len(images), self.num_image_blocks, self.block_width)

    def encode_texts(self, texts: list[str], /) -> NDArray[np.float32]:
        return units(1, len(texts), self.num_text_blocks, self.block_width)


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
        query, first_seconds of the very first search by the condition, error (largest difference of a score from
        float64), entry_bytes on the disk.

    Raises:
        RuntimeError: a store's first k are not those of float64.
    """
    return in_process(threads, _measure, entries, shape, k, runs, threads)


def _measure(entries: int, shape: tuple[int, int, int], k: int, runs: int, threads: int) -> list[dict[str, Any]]:
    blocks, queries = units(0, entries, shape[0], shape[2]), units(1, _ASKED, shape[1], shape[2])
    truth = _truth(blocks, queries)
    ways: dict[tuple[str, str | None], Callable[[], list[list[Hit]]]] = {}
    first: dict[tuple[str, str | None], float] = {}
    bytes_of: dict[str, int] = {}
    with TemporaryDirectory() as temporary, ExitStack() as stack:
        for store in STORES:
            index = stack.enter_context(Index.create(Path(temporary) / store, _Blocks(shape), store=store))
            for at in range(0, entries, _PART):
                numbers = range(at, min(at + _PART, entries))
                part = slice(numbers.start, numbers.stop)
                index.add_embeddings([str(i) for i in numbers], blocks[part], [{"digit": i % 10} for i in numbers])
            bytes_of[store] = sum(map(_bytes_on_disk, (Path(temporary) / store).rglob("*")))
            for where in (WHERE, None):
                started = time.perf_counter()
                _ask(index, queries[:1], k, where)
                first[store, where] = time.perf_counter() - started
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
            "first_seconds": round(first[store, where], 6),
            "error": errors[store, where],
            "entry_bytes": round(bytes_of[store] / entries),
            "threads": threads,
        }
        for store, where in ways
    ]


def measure_graph(
    entries: int, shape: tuple[int, int, int] = (8, 4, 256), *, k: int = 10, runs: int = 7, threads: int = 1
) -> list[dict[str, Any]]:
    """Build the embedded store's HNSW graph over random images, and search with it and without it in turns.

    Random images have no neighbourhoods to go along: the hard case for a graph.

    Returns:
        One row `measure: graph`: entries, build_seconds, seconds and exact_seconds a query, recall of the first k.
    """
    return in_process(threads, _graph, entries, shape, k, runs, threads)


def _graph(entries: int, shape: tuple[int, int, int], k: int, runs: int, threads: int) -> list[dict[str, Any]]:
    blocks, queries = units(0, entries, shape[0], shape[2]), units(1, _ASKED, shape[1], shape[2])
    with TemporaryDirectory() as temporary, Index.create(Path(temporary) / "graph", _Blocks(shape)) as index:
        for at in range(0, entries, _PART):
            part = blocks[at : at + _PART]
            index.add_embeddings([str(at + i) for i in range(len(part))], part)
        started = time.perf_counter()
        index.search(embedding=queries[0], k=k, approximate=True)
        build = time.perf_counter() - started
        ways = {
            approximate: partial(_ask, index, queries, k, None, approximate=approximate)
            for approximate in (True, False)
        }
        pairs = list(zip(ways[True](), ways[False](), strict=True))
        kept = sum(len({hit.id for hit in near} & {hit.id for hit in exact}) for near, exact in pairs)
        seconds = interleaved(ways, runs)
    row = {"measure": "graph", "entries": entries, "shape": list(shape), "k": k, "threads": threads}
    row |= {"build_seconds": round(build, 2), "recall": round(kept / sum(len(exact) for _, exact in pairs), 4)}
    row |= {"seconds": round(seconds[True] / _ASKED, 6), "exact_seconds": round(seconds[False] / _ASKED, 6)}
    return [row]


def _bytes_on_disk(path: Path) -> int:
    facts = path.stat()
    return 512 * facts.st_blocks if hasattr(facts, "st_blocks") else facts.st_size  # some files have holes


def _ask(
    index: Index, queries: NDArray[np.float32], k: int, where: str | None, approximate: bool = False
) -> list[list[Hit]]:
    return [index.search(embedding=query, k=k, where=where, approximate=approximate) for query in queries]


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
