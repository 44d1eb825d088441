"""The k best documents of every query without the score matrix, exact in float32 or by int8 and a second look.

Tiles of scores go by; a running bar a query lets only what may still be among its first k through. Ties go to the lower
number. Knows no model and no index.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from avse.scoring.aeom import aeom, check_blocks, plain_arrays
from avse.scoring.int8 import SAMPLE, Quantised, band, error_of, quantise
from avse.scoring.query import Side, look_again, scan
from avse.scoring.rows import read_rows
from avse.scoring.tiles import NOT_FINITE, PRECISIONS, Precision, as_tensor, fast, finite, score_tiles

_T = TypeVar("_T")

FEW = 4
"""Queries that are scanned one by one through quantised documents."""
_PREPARE_FROM = 16
"""Queries from which it pays to quantise documents that were not."""
_LOOSE = 64
"""Rows kept for each of the first k of a query before the bars are raised."""
_TOGETHER = 4096
"""Documents scored together by one query."""
_SHARE = 16
"""One document in so many may be scored again one by one before it is cheaper to score all of them in float32."""


class _CrowdedError(Exception):
    """So many documents lie within the band of int8's error that it settles nothing."""


class TopK(NamedTuple):
    """The best documents of each query, best first."""

    scores: Any
    """(q, k) float32; float64 where both sides are."""
    ids: Any
    """(q, k) int64, numbers of documents; of equal scores the lower first. Scores of one document's copies may
    differ in the last bit, by their place in a matrix product: then any of them comes first."""


def topk(
    queries: Any,
    documents: Any,
    k: int,
    queries_are: Literal["texts", "images"] = "texts",
    precision: Precision = "fp32",
) -> TopK:
    """Find the k best documents of every query by S.

    Args:
        queries: (q, Q, C) texts or (q, P, C) images; numpy or torch.
        documents: the other side, of the same kind; `Quantised` with its blocks, made once for many calls.
        k: how many, at least 1; all documents where there are fewer.
        queries_are: which side asks.
        precision: "fp32" is exact. "int8" scores in int8, takes the rows within twice 6 sigma of the k-th score (sigma
            of the error, from a sample in this call) and scores those in fp32: the same for unit blocks but for a share
            of queries below 1e-4. "bf16" ranks by scores in bfloat16. Where the processor is not faster with them, both
            are computed in fp32.

    Returns:
        Scores and numbers, numpy or torch as the queries are.

    Raises:
        ValueError: Another shape, side, precision, k below 1, or blocks that hold NaN or infinity.

    >>> texts = np.array([[[1.0, 0.0]], [[0.0, 1.0]]], np.float32)
    >>> images = np.array([[[0.6, 0.8]], [[1.0, 0.0]], [[1.0, 0.0]]], np.float32)
    >>> topk(texts, images, 2).ids.tolist()
    [[1, 2], [0, 1]]
    """
    if queries_are not in ("texts", "images") or precision not in PRECISIONS:
        raise ValueError(
            f"queries_are={queries_are!r}, precision={precision!r}: texts or images; {', '.join(PRECISIONS)}"
        )
    if isinstance(k, bool) or int(k) != k or k < 1:
        raise ValueError(f"k={k!r}: a whole number of at least 1 is wanted")
    prepared = documents if isinstance(documents, Quantised) else None
    if prepared is not None and prepared.blocks is None:
        raise ValueError("quantised documents without their blocks: make them by quantise(blocks)")
    blocks: Any = documents if prepared is None else prepared.blocks
    if prepared is not None and not isinstance(queries, np.ndarray):
        blocks = as_tensor(blocks)
    check_blocks(*_ordered(queries, blocks, queries_are))
    k = min(k, len(blocks))
    plain = plain_arrays(queries, blocks)
    if plain is None:
        return _generic(queries, blocks, k, queries_are, precision)
    found = _plain(*plain, prepared, k, queries_are, precision)
    return found if isinstance(queries, np.ndarray) else TopK(*map(sys.modules["torch"].from_numpy, found))


def _plain(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    prepared: Quantised | None,
    k: int,
    queries_are: Side,
    precision: Precision,
) -> TopK:
    if not len(queries) or not k:
        return TopK(np.zeros((len(queries), k), np.float32), np.zeros((len(queries), k), np.int64))
    if precision == "int8" and prepared is not None and len(queries) <= FEW:
        found = [_one(query, prepared, documents, k, queries_are) for query in queries]
    elif precision == "int8" and (prepared is not None or len(queries) >= _PREPARE_FROM) and _suits(documents):
        try:
            return _coarse(queries, documents, prepared or quantise(documents), k, queries_are)
        except _CrowdedError:
            return topk(queries, documents, k, queries_are)
    else:
        images, texts = _ordered(queries, documents, queries_are)
        tiles = score_tiles(images, texts, "fp32" if precision == "int8" else precision)
        return _first(*_candidates(finite(tiles), k, queries_are, 0), len(queries), k)
    return TopK(*(np.stack(values) for values in zip(*found)))


def _suits(documents: NDArray[np.float32]) -> bool:
    """Tell whether int8 tiles are right and fast here: `torch._int_mm` errs for blocks of width 1."""
    return documents.shape[2] > 1 and fast("int8")


def _one(
    query: NDArray[np.float32], prepared: Quantised, documents: NDArray[np.float32], k: int, queries_are: Side
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scan, then look again at what may be among the first k."""

    def exact(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        parts = (read_rows(documents, rows[at : at + _TOGETHER]) for at in range(0, len(rows), _TOGETHER))
        return np.concatenate([_exact(query, part, queries_are) for part in parts])

    rough = scan(query, prepared, "images" if queries_are == "texts" else "texts")
    rows, scores = look_again(rough, k, exact)
    order = np.lexsort((rows, -scores))[:k]
    return scores[order], rows[order]


def _exact(query: NDArray[np.float32], documents: NDArray[np.float32], queries_are: Side) -> NDArray[np.float32]:
    """Score one query (R, C) against (r, B, C)."""
    products = (query @ documents.reshape(-1, documents.shape[2]).T).reshape(len(query), *documents.shape[:2])
    scores: NDArray[np.float32] = products.max(2).sum(0) if queries_are == "texts" else products.max(0).sum(1)
    return scores


def _coarse(
    queries: NDArray[np.float32], documents: NDArray[np.float32], prepared: Quantised, k: int, queries_are: Side
) -> TopK:
    """Rank in int8 with a band, score the band in float32; a query for which the band was too narrow, all of it."""
    asked = quantise(queries)
    step = asked.step * prepared.step
    sampled, some = _spread(len(queries), SAMPLE), _spread(len(documents), SAMPLE)
    small = Quantised(asked.values[:, sampled], asked.step), Quantised(prepared.values[:, some], prepared.step)
    exact = aeom(*_ordered(queries[sampled], documents[some], queries_are))
    rough = np.empty_like(exact)
    for rows, columns, tile in score_tiles(*_ordered(*small, queries_are), "int8"):
        rough[rows, columns] = tile * np.float32(step)
    slack = int(np.ceil(band(error_of(rough, exact)) / step))
    tiles = score_tiles(*_ordered(asked, prepared, queries_are), "int8")
    of_query, ids, steps = _candidates(tiles, k, queries_are, slack)
    if len(ids) > len(queries) * max(4 * k, len(documents) // _SHARE):
        raise _CrowdedError
    scores = pair_scores(queries, documents, of_query, ids, queries_are)
    found = _first(of_query, ids, scores, len(queries), k)
    narrow = np.unique(of_query[2 * np.abs(steps - scores / np.float64(step)) > max(1, slack)])
    if len(narrow):
        again = topk(queries[narrow], documents, k, queries_are)
        found.scores[narrow], found.ids[narrow] = again
    return found


def pair_scores(
    queries: NDArray[np.float32],
    documents: NDArray[np.float32],
    of_query: NDArray[np.int64],
    ids: NDArray[np.int64],
    queries_are: Side,
) -> NDArray[np.float32]:
    """Score pairs (query, document) in float32; the side with fewer members takes its partners together."""
    scores = np.empty(len(ids), np.float32)
    swap = len(documents) < len(queries)
    keys, partners = (ids, of_query) if swap else (of_query, ids)
    here, there = (documents, queries) if swap else (queries, documents)
    side: Side = queries_are if not swap else ("images" if queries_are == "texts" else "texts")
    order = np.argsort(keys, kind="stable")
    bounds = np.searchsorted(keys[order], np.arange(len(here) + 1))
    for key, (first, last) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist())):
        if first < last:
            which = order[first:last]
            scores[which] = _exact(here[key], there[partners[which]], side)
    return scores


def _candidates(
    tiles: Iterator[tuple[slice, slice, NDArray[Any]]], k: int, queries_are: Side, slack: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
    """Return queries, documents and scores of all that may be among the first k of its query, in any order."""
    running: dict[int, _Running] = {}
    for rows, columns, tile in tiles:
        asked, first = (columns, rows.start) if queries_are == "texts" else (rows, columns.start)
        if asked.start not in running:
            running[asked.start] = _Running(asked.start, asked.stop - asked.start, k, slack, tile.dtype)
        running[asked.start].add(tile, first, axis=1 if queries_are == "texts" else 0)
    parts = [part.finish() for part in running.values()]
    queries, ids, scores = (np.concatenate(values) for values in zip(*parts))
    return queries, ids, scores


class _Running:
    """The candidates of some queries while tiles of scores go by, documents in ascending order."""

    def __init__(self, first: int, count: int, k: int, slack: int, kind: np.dtype[Any]) -> None:
        self.first, self.count, self.k, self.slack = first, count, k, slack
        self.lowest = np.iinfo(kind).min if kind.kind == "i" else -np.inf
        self.bars = np.full(count, self.lowest, kind)
        self.parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]] = []
        self.held, self.seen = 0, 0

    def add(self, tile: NDArray[Any], first: int, axis: int) -> None:
        """Take what reaches the bars of a tile whose queries lie along ``axis``."""
        documents = tile.shape[1 - axis]
        if self.seen < self.k <= documents:  # the first tile sets the bars
            kth = np.partition(tile, documents - self.k, axis=1 - axis).take(documents - self.k, axis=1 - axis)
            self.bars = np.maximum(self.bars, self._below(kth))
            strict = False
        else:
            strict = not self.slack and self.seen >= self.k
        bars = self.bars[None] if axis else self.bars[:, None]
        passed = np.flatnonzero(tile > bars if strict else tile >= bars)
        rows, columns = np.divmod(passed, tile.shape[1])
        queries, ids = (columns, rows) if axis else (rows, columns)
        self.parts.append((queries, ids + first, tile.ravel()[passed]))
        self.held += len(passed)
        self.seen += documents
        if self.held > _LOOSE * max(self.k, 8) * self.count:
            self._raise_bars()

    def finish(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[Any]]:
        """Return queries, documents and scores."""
        self._raise_bars()
        queries, ids, scores = self.parts[0]
        return queries + self.first, ids, scores

    def _below(self, kth: NDArray[Any]) -> NDArray[Any]:
        if not self.slack:
            return kth
        return np.where(kth > self.lowest, kth - kth.dtype.type(self.slack), kth)

    def _raise_bars(self) -> None:
        """Set the bars by the k-th score so far and drop what lies below them."""
        queries, ids, scores = (np.concatenate(values) for values in zip(*self.parts))
        if len(queries) and self.seen >= self.k:
            keys = np.sort(queries.astype(np.uint64) << np.uint64(32) | _sortable(scores))
            ends = np.searchsorted(keys, np.arange(1, self.count + 1, dtype=np.uint64) << np.uint64(32))
            kth = _from_sortable(keys[ends - self.k], scores.dtype)
            self.bars = np.maximum(self.bars, self._below(kth))
            keep = scores >= self.bars[queries]
            queries, ids, scores = queries[keep], ids[keep], scores[keep]
        self.parts, self.held = [(queries, ids, scores)], len(queries)
        if self.slack and 2 * self.held > _LOOSE * max(self.k, 8) * self.count:
            raise _CrowdedError


def _sortable(scores: NDArray[Any]) -> NDArray[np.uint64]:
    """Return whole numbers in the order of the scores (float32 or int32)."""
    bits = scores.view(np.uint32)
    top = np.uint32(1 << 31)
    if scores.dtype.kind == "f":
        bits = np.where(bits & top, ~bits, bits | top)
    else:
        bits = bits ^ top
    return bits.astype(np.uint64)


def _from_sortable(keys: NDArray[np.uint64], kind: np.dtype[Any]) -> NDArray[Any]:
    bits = keys.astype(np.uint32)
    top = np.uint32(1 << 31)
    bits = np.where(bits & top, bits ^ top, ~bits) if kind.kind == "f" else bits ^ top
    return bits.view(kind)


def _first(queries: NDArray[np.int64], ids: NDArray[np.int64], scores: NDArray[Any], count: int, k: int) -> TopK:
    """Cut sorted candidates to k a query."""
    order = np.lexsort((ids, -scores, queries))
    bounds = np.searchsorted(queries[order], np.arange(count + 1))
    starts = bounds[:-1]
    chosen = order[starts[:, None] + np.arange(k)]
    return TopK(scores[chosen].astype(np.float32), ids[chosen].astype(np.int64))


def _spread(length: int, most: int) -> NDArray[np.int64]:
    """Return at most ``most`` numbers spread evenly over 0 … length - 1."""
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(np.int64))


def _generic(queries: Any, documents: Any, k: int, queries_are: Side, precision: Precision) -> TopK:
    """Rank on any device or in another type: chunks of scores, a stable sort of each with the best so far."""
    on_numpy = isinstance(queries, np.ndarray)
    join: Callable[..., Any] = np.concatenate if on_numpy else sys.modules["torch"].cat
    take: Callable[..., Any] = np.take_along_axis if on_numpy else sys.modules["torch"].take_along_dim
    step, width = (1024, 4096) if on_numpy or queries.device.type == "cpu" else (4096, 1 << 14)
    rows = []
    for top in range(0, max(1, len(queries)), step):
        asked = queries[top : top + step]
        scores, ids = None, None
        for first in range(0, max(1, len(documents)), width):
            part = documents[first : first + width]
            new = aeom(*_ordered(asked, part, queries_are), "bf16" if precision == "bf16" else "fp32")
            new = new.T if queries_are == "texts" else new
            if 0 not in new.shape and not np.isfinite([float(new.min()), float(new.max())]).all():
                raise ValueError(NOT_FINITE)
            order = _descending(new)[:, :k]
            best, found = take(new, order, 1), order + first
            if scores is not None:
                best, found = join([scores, best], 1), join([ids, found], 1)
                order = _descending(best)[:, :k]
                best, found = take(best, order, 1), take(found, order, 1)
            scores, ids = best, found
        rows.append((scores, ids))
    scores, ids = (join(values, 0) for values in zip(*rows))
    return TopK(scores, ids)


def _descending(rows: Any) -> Any:
    """Return the stable order of each row, best first."""
    if isinstance(rows, np.ndarray):
        return np.argsort(-rows, axis=1, kind="stable")
    return rows.sort(dim=1, descending=True, stable=True).indices


def _ordered(queries: _T, documents: _T, queries_are: Side) -> tuple[_T, _T]:
    """Return images, texts."""
    return (documents, queries) if queries_are == "texts" else (queries, documents)
