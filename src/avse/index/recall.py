"""What an approximate search loses: its answers beside those of an exact one, for a sample of queries.

Knows an index by its face alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from avse.index.index import Index

SAMPLE = 20


class Recall(NamedTuple):
    """Shares, 0 to 1, of the k exact answers that the approximate search found; None without queries of the kind."""

    asked: float | None
    """Of the queries asked."""
    sampled: float | None
    """Of queries made of stored blocks."""
    samples: int


def measure_recall(
    index: Index, asked: Sequence[Mapping[str, Any]], k: int, where: str | None, sample: int = SAMPLE
) -> Recall:
    """Ask each query both ways.

    The sample takes the first entries that the store lists, which in an engine's store are in the order of a hash, and
    makes a query of as many of an entry's blocks, drawn at random, as a sentence has: nearer to the entries than real
    sentences are, so the figure for those that were asked stands beside it. An answer whose score is that of the k-th
    exact one, but for rounding, counts as found.

    Args:
        index: The index, of images.
        asked: Arguments of `Index.search` that say what is asked.
        k: Answers a query.
        where: A condition for all.
        sample: How many entries to make queries of.
    """
    names = [name for name, _ in next(index.entries(), [])[:sample]]
    _, blocks, _ = index.get(names)
    pick, rows = np.random.default_rng(0), index.layout.query[0]
    made = [{"embedding": entry[pick.integers(len(entry), size=rows)]} for entry in blocks]
    return Recall(_share(index, asked, k, where), _share(index, made, k, where), len(made))


def _share(index: Index, queries: Sequence[Mapping[str, Any]], k: int, where: str | None) -> float | None:
    found = wanted = 0
    for query in queries:
        exact = index.search(**query, k=k, where=where)
        if exact:
            lowest = exact[-1].score - 1e-5
            near = index.search(**query, k=k, where=where, approximate=True)
            found += sum(hit.score >= lowest for hit in near)
            wanted += len(exact)
    return found / wanted if wanted else None
