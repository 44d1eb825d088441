"""Ranks of the best match of every query, by counting: ties, shared texts and folds (method, section 5).

A rank is the number of non-matches that stand before the best match, so nothing is sorted. Works on a matrix of scores
or on tiles of one that is never whole; numpy alone. Knows neither recalls nor models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

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


class Scores(Protocol):
    """Scores (n, k) of images against columns that can be asked twice: for a few, and for all of them tile by tile."""

    @property
    def shape(self) -> tuple[int, int]:
        """Return (n, k)."""

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return the scores of pairs, with the very bits that `tiles` has for them."""

    def tiles(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yield every score once: images, columns, and their scores."""


class Matrix:
    """`Scores` that are there as a matrix."""

    def __init__(self, scores: np.ndarray) -> None:
        """Take (n, k) floats without NaN."""
        self._scores, self.shape = scores, (scores.shape[0], scores.shape[1])

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Look them up."""
        return self._scores[rows, columns]

    def tiles(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Yield whole rows."""
        for top in range(0, self.shape[0], ROWS):
            part = self._scores[top : top + ROWS]
            yield slice(top, top + len(part)), slice(0, self.shape[1]), part


def count_ranks(
    scores: np.ndarray,
    text_to_image: np.ndarray,
    columns: np.ndarray,
    groups: np.ndarray | None = None,
    folds: int = 1,
) -> Ranks:
    """Rank every query in the gallery of its fold; `rank_scores` of a matrix, for one number of folds."""
    return rank_scores(Matrix(scores), text_to_image, columns, groups, (folds,))[0]


def rank_scores(
    scores: Scores,
    text_to_image: np.ndarray,
    columns: np.ndarray,
    groups: np.ndarray | None = None,
    folds: Sequence[int] = (1,),
) -> list[Ranks]:
    """Rank every query in the gallery of its fold, for several numbers of folds in one pass over the scores.

    Args:
        scores: (n, k), image i against column c, floats without NaN.
        text_to_image: (m,) int64, the image of each caption.
        columns: (m,) int64, the column of each caption; captions that are one text may share it.
        groups: (m,) int64, the text of each caption: an image and a caption match when the image carries the
            caption's text. None: when the caption is the image's own.
        folds: each a number of equal parts of the images, in order, with their captions.

    Returns:
        Ranks for each number of folds.

    Raises:
        ValueError: the images cannot be cut into so many folds, or a fold holds no caption.
    """
    cut = []
    for number in folds:
        starts = fold_starts(scores.shape[0], number)
        size = scores.shape[0] // number
        cut.append([_Gallery(start, start + size, text_to_image, columns, groups, number) for start in starts.tolist()])
    every = [gallery for galleries in cut for gallery in galleries]
    own = scores.at(*(np.concatenate(values) for values in zip(*(gallery.wanted for gallery in every))))
    for gallery, part in zip(every, np.split(own, np.cumsum([len(gallery.images) for gallery in every])[:-1])):
        gallery.set_bars(part)
    for rows, across, tile in scores.tiles():
        for gallery in every:
            gallery.count(rows, across, tile)
    return [_together(galleries, text_to_image) for galleries in cut]


def _together(galleries: Sequence[_Gallery], text_to_image: np.ndarray) -> Ranks:
    t2i, t2i_optimistic = np.empty((2, len(text_to_image)), np.int64)
    i2t = []
    for gallery in galleries:
        worst, t2i[gallery.texts], best, t2i_optimistic[gallery.texts], queries = gallery.ranks()
        i2t.append((worst, best, queries))
    worst, best, queries = (np.concatenate(values) for values in zip(*i2t))
    starts = np.array([gallery.first for gallery in galleries], np.int64)
    return Ranks(worst, t2i, best, t2i_optimistic, queries, text_to_image, starts)


class _Gallery:
    """Images first … last - 1 with their captions, ranked among themselves; numbers in it count from 0."""

    def __init__(
        self,
        first: int,
        last: int,
        text_to_image: np.ndarray,
        columns: np.ndarray,
        groups: np.ndarray | None,
        folds: int,
    ) -> None:
        self.first, self.last, self.size = first, last, last - first
        self.texts = np.flatnonzero((text_to_image >= first) & (text_to_image < last))
        if not len(self.texts) and folds > 1:
            raise ValueError(f"images {first} to {last - 1}, a fold of {folds}, have no caption")
        self.columns, self.own = np.unique(columns[self.texts], return_inverse=True)
        self.image_of, self.grouped = text_to_image[self.texts] - first, groups is not None
        width = max(1, len(self.columns))
        self.captions = np.bincount(self.own, minlength=len(self.columns))
        if groups is None:
            pairs, self.pair, times = np.unique(
                self.image_of * width + self.own, return_inverse=True, return_counts=True
            )
            self.images, self.asked, self.times = pairs // width, pairs % width, times
        else:
            self.images, self.asked = _carriers(self.image_of, self.own, groups[self.texts])
            self.times = self.captions[self.asked]

    @property
    def wanted(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and columns of all matches."""
        return self.images + self.first, self.columns[self.asked]

    def set_bars(self, own: np.ndarray) -> None:
        """Take the scores of the matches: the best of each query is its bar."""
        best = np.full(self.size, -np.inf, own.dtype)
        np.maximum.at(best, self.images, own)
        # Matches that tie with the best one are counted too; no match stands above it.
        self.tied = np.bincount(self.images, self.times * (own == best[self.images]), self.size).astype(np.int64)
        if self.grouped:  # a query of texts is a column, with every image that carries its text
            top = np.full(len(self.columns), -np.inf, own.dtype)
            np.maximum.at(top, self.asked, own)
            self.ties = np.bincount(self.asked, own == top[self.asked], len(top)).astype(np.int64)
            self.counter = _Counter(best, self.captions, np.arange(len(top)), top)
        else:  # it is a caption, whose only match is its image
            self.counter = _Counter(best, self.captions, self.asked, own)

    def count(self, rows: slice, across: slice, tile: np.ndarray) -> None:
        """Count in that part of a tile that belongs here."""
        top, bottom = max(rows.start, self.first), min(rows.stop, self.last)
        low, high = np.searchsorted(self.columns, (across.start, across.stop)).tolist()
        if top >= bottom or low == high:
            return
        part = tile[top - rows.start : bottom - rows.start]
        if high - low < part.shape[1]:
            chosen = self.columns[low:high] - across.start
            whole = chosen[-1] - chosen[0] + 1 == len(chosen)
            part = part[:, chosen[0] : chosen[-1] + 1] if whole else part[:, chosen]
        self.counter.add(top - self.first, low, part)

    def ranks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return i2t and t2i ranks, the optimistic ones, and the images (of all) that are i2t queries."""
        queries = np.unique(self.image_of)
        rows, cells = self.counter.rows, self.counter.cells
        if self.grouped:
            worst, above = (cells[0] - self.ties)[self.own], cells[1][self.own]
        else:
            worst, above = (cells[0] - 1)[self.pair], cells[1][self.pair]
        return (rows[0] - self.tied)[queries], worst, rows[1][queries], above, queries + self.first


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


class _Counter:
    """Counts what reaches and what passes a bar, tile by tile.

    Attributes:
        rows: (2, n) columns of each row at or above, and above, its bar.
        cells: (2, q) rows of each asked column likewise.
    """

    def __init__(self, row_bars: np.ndarray, weights: np.ndarray, asked: np.ndarray, bars: np.ndarray) -> None:
        """Take a bar a row (n,), how often a column counts in a row (k,), asked columns (q,) and a bar each (q,)."""
        self.row_bars, self.rows = row_bars, np.zeros((2, len(row_bars)), np.int64)
        self.order = np.argsort(asked, kind="stable")
        self.asked, self.bars = asked[self.order], bars[self.order]
        self.sorted_cells = np.zeros((2, len(asked)), np.int64)
        self.uneven = np.flatnonzero(weights != 1)
        self.extra = weights[self.uneven] - 1

    @property
    def cells(self) -> np.ndarray:
        """Return the counts of the asked columns in the order asked."""
        cells = np.empty_like(self.sorted_cells)
        cells[:, self.order] = self.sorted_cells
        return cells

    def add(self, top: int, left: int, tile: np.ndarray) -> None:
        """Count a tile (a, b) that begins at row ``top`` and column ``left``."""
        first, last = np.searchsorted(self.asked, (left, left + tile.shape[1])).tolist()
        asked, bars = self.asked[first:last] - left, self.bars[first:last]
        every = len(asked) == tile.shape[1] and bool((asked == np.arange(len(asked))).all())
        begin, end = np.searchsorted(self.uneven, (left, left + tile.shape[1])).tolist()
        uneven, extra = self.uneven[begin:end] - left, self.extra[begin:end]
        for start in range(0, len(tile), ROWS):
            part = tile[start : start + ROWS]
            seen = part if every else part[:, asked]
            here = slice(top + start, top + start + len(part))
            for row, cell, compare in zip(self.rows, self.sorted_cells, (np.greater_equal, np.greater)):
                reached = compare(part, self.row_bars[here, None])
                row[here] += np.count_nonzero(reached, axis=1) + reached[:, uneven] @ extra
                cell[first:last] += np.add.reduce(compare(seen, bars).view(np.uint8), axis=0, dtype=np.uint8)


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
