"""Ranks of the best match of every query, by counting: ties, shared texts and folds (method, section 5).

A rank is the number of non-matches that stand before the best match, so nothing is sorted. Works on a matrix of scores;
numpy alone. Knows neither recalls nor models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

ROWS = 128
"""Rows of scores compared at a time; at most 255, for hits of a column are counted in a byte."""


@dataclass(frozen=True)
class Ranks:
    """0-based ranks of the best match of every query; images without captions are no i2t queries."""

    i2t: np.ndarray
    """(q,) int64, ties counted against the system."""
    t2i: np.ndarray
    """(m,) int64."""
    i2t_optimistic: np.ndarray
    """(q,) int64, ties counted for the system."""
    t2i_optimistic: np.ndarray
    image_of_query: np.ndarray
    """(q,) int64, the image of each i2t query, ascending."""
    image_of_text: np.ndarray
    """(m,) int64, text_to_image."""
    fold_starts: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    """(folds,) int64, the first image of each fold; a query is ranked in the gallery of its own fold."""

    def folds_of(self, images: np.ndarray) -> np.ndarray:
        """Return the fold of each image, from 0."""
        return np.searchsorted(self.fold_starts, images, side="right") - 1


def hit_rates(ranks: Ranks, ks: Sequence[int], optimistic: bool = False) -> np.ndarray:
    """Return Recall@K in percent, (2, len(ks)): i2t and t2i, each the mean of its folds."""
    sides = (ranks.i2t_optimistic, ranks.t2i_optimistic) if optimistic else (ranks.i2t, ranks.t2i)
    images = (ranks.image_of_query, ranks.image_of_text)
    rates = np.empty((2, len(ks)))
    for side, (values, folds) in enumerate(zip(sides, map(ranks.folds_of, images))):
        parts = [values[folds == fold] for fold in range(len(ranks.fold_starts))]
        rates[side] = [np.mean([100 * (part < k).mean() for part in parts]) for k in ks]
    return rates


def fold_starts(images: int, folds: int) -> np.ndarray:
    """Return the first image of each of `folds` equal parts of the images, in order.

    Raises:
        ValueError: the images cannot be cut into so many equal parts.
    """
    if folds < 1 or images % folds:
        raise ValueError(f"{images} images cannot be cut into {folds} folds of equal size")
    return np.arange(folds, dtype=np.int64) * (images // folds)


def count_ranks(
    scores: np.ndarray,
    text_to_image: np.ndarray,
    columns: np.ndarray,
    groups: np.ndarray | None = None,
    folds: int = 1,
) -> Ranks:
    """Rank every query in the gallery of its fold.

    Args:
        scores: (n, k), image i against column c, floats without NaN.
        text_to_image: (m,) int64, the image of each caption.
        columns: (m,) int64, the column of each caption; captions that are one text may share it.
        groups: (m,) int64, the text of each caption: an image and a caption match when the image carries the
            caption's text. None: when the caption is the image's own.
        folds: equal parts of the images, in order, with their captions.

    Raises:
        ValueError: the images cannot be cut into `folds`, or a fold holds no caption.
    """
    starts = fold_starts(len(scores), folds)
    if folds == 1:
        return _rank(scores, text_to_image, columns, groups)
    size = len(scores) // folds
    i2t: list[tuple[np.ndarray, ...]] = []
    t2i, t2i_optimistic = np.empty((2, len(text_to_image)), np.int64)
    for start in starts.tolist():
        texts = np.flatnonzero((text_to_image >= start) & (text_to_image < start + size))
        if not len(texts):
            raise ValueError(f"images {start} to {start + size - 1}, a fold of {folds}, have no caption")
        used, own = np.unique(columns[texts], return_inverse=True)
        part = _rank(
            scores[start : start + size][:, used],
            text_to_image[texts] - start,
            own,
            None if groups is None else groups[texts],
        )
        i2t.append((part.i2t, part.i2t_optimistic, part.image_of_query + start))
        t2i[texts], t2i_optimistic[texts] = part.t2i, part.t2i_optimistic
    worst, best, queries = (np.concatenate(values) for values in zip(*i2t))
    return Ranks(worst, t2i, best, t2i_optimistic, queries, text_to_image, starts)


def _rank(scores: np.ndarray, text_to_image: np.ndarray, columns: np.ndarray, groups: np.ndarray | None) -> Ranks:
    """Rank in one gallery."""
    n, width = scores.shape
    captions = np.bincount(columns, minlength=width)
    if groups is None:
        pairs, pair, times = np.unique(text_to_image * width + columns, return_inverse=True, return_counts=True)
        images, asked = pairs // width, pairs % width
    else:
        images, asked = _carriers(text_to_image, columns, groups)
        times = captions[asked]
    own = scores[images, asked]
    best = np.full(n, -np.inf, scores.dtype)
    np.maximum.at(best, images, own)
    queries = np.unique(text_to_image)
    # Matches that tie with the best one were counted too; no match stands above it.
    tied = np.bincount(images, times * (own == best[images]), n).astype(np.int64)
    if groups is None:  # a query of texts is a caption, whose only match is its image
        rows, cells = _count(scores, best, captions, asked, own)
        worst, above = (cells[0] - 1)[pair], cells[1][pair]
    else:  # it is a column, with every image that carries its text
        top = np.full(width, -np.inf, scores.dtype)
        np.maximum.at(top, asked, own)
        rows, cells = _count(scores, best, captions, np.arange(width), top)
        ties = np.bincount(asked, own == top[asked], width).astype(np.int64)
        worst, above = (cells[0] - ties)[columns], cells[1][columns]
    return Ranks((rows[0] - tied)[queries], worst, rows[1][queries], above, queries, text_to_image)


def _carriers(text_to_image: np.ndarray, columns: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs (image, column) whose text the image carries, each once."""
    texts = int(groups.max()) + 1
    owned = np.unique(text_to_image * texts + groups)
    used = np.unique(groups * (int(columns.max()) + 1) + columns)
    text_of, column_of = np.divmod(used, int(columns.max()) + 1)  # in the order of texts
    counts = np.bincount(text_of, minlength=texts)
    firsts = np.cumsum(counts) - counts
    image, text = np.divmod(owned, texts)
    repeats = counts[text]
    within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    return np.repeat(image, repeats), column_of[np.repeat(firsts[text], repeats) + within]


def _count(
    scores: np.ndarray, row_bars: np.ndarray, weights: np.ndarray, asked: np.ndarray, bars: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count what reaches and what passes a bar, in one pass over the scores.

    Args:
        scores: (n, k).
        row_bars: (n,) a bar a row.
        weights: (k,) how often a column counts in a row.
        asked: (q,) columns.
        bars: (q,) a bar each.

    Returns:
        (2, n) columns of each row at or above, and above, its bar; (2, q) rows of each asked column likewise.
    """
    rows, cells = np.zeros((2, len(scores)), np.int64), np.zeros((2, len(asked)), np.int64)
    uneven = np.flatnonzero(weights != 1)
    every = len(asked) == scores.shape[1] and bool((asked == np.arange(len(asked))).all())
    for start in range(0, len(scores), ROWS):
        part = scores[start : start + ROWS]
        seen = part if every else part[:, asked]
        for row, cell, compare in zip(rows, cells, (np.greater_equal, np.greater)):
            reached = compare(part, row_bars[start : start + ROWS, None])
            counts = np.count_nonzero(reached, axis=1)
            row[start : start + ROWS] = counts + reached[:, uneven] @ (weights[uneven] - 1)
            cell += np.add.reduce(compare(seen, bars).view(np.uint8), axis=0, dtype=np.uint8)
    return rows, cells


def first_k(scores: np.ndarray, k: int, last: np.ndarray | None = None) -> np.ndarray:
    """Return the k best of a row of scores, best first; of equal ones those in `last` come last, then the lower number.

    Args:
        scores: (c,) one query against c items.
        k: at most c.
        last: (c,) True for items that lose a tie; None: none.

    >>> first_k(np.array([0.5, 0.9, 0.5, 0.1]), 2, np.array([True, False, False, False])).tolist()
    [1, 2]
    """
    bar = np.partition(scores, len(scores) - k)[len(scores) - k]
    found = np.flatnonzero(scores >= bar)
    keys = (found, -scores[found]) if last is None else (found, last[found], -scores[found])
    order: np.ndarray = found[np.lexsort(keys)[:k]]
    return order
