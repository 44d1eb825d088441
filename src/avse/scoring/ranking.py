"""Ranks of given matches without the score matrix: tiles are computed, counted and forgotten (method, section 5).

Two sweeps over the same tiles: the first computes those that hold a match, to know the bars, the second counts what
reaches them, so that a tie is a tie to the last bit. Knows no model.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from avse.ranks import Ranks, rank_scores
from avse.scoring.aeom import check_blocks, plain_arrays
from avse.scoring.tiles import Precision, finite, score_tiles, tile_shape


def rank_of(
    images: Any,
    texts: Any,
    text_to_image: Any,
    *,
    columns: Any = None,
    groups: Any = None,
    folds: int = 1,
    precision: Precision = "fp32",
) -> Ranks:
    """Rank the best match of every query, ties counted both ways; memory does not grow with n times m.

    Fast where the texts stand in the order of their images: then few tiles are computed twice.

    Args:
        images: (n, P, C), numpy or torch; float32 on the CPU is made of them.
        texts: (k, Q, C) likewise.
        text_to_image: (m,) the image of each caption.
        columns: (m,) the row of ``texts`` of each caption; None: caption j is row j.
        groups: (m,) the text of each caption, for duplicate-aware ranks; see `avse.ranks.rank_scores`.
        folds: equal parts of the images, each ranked for itself.
        precision: "fp32" or "bf16".

    Returns:
        `Ranks` of all queries.

    Raises:
        ValueError: shapes or lengths that do not fit, images or columns that are not there, no captions, blocks that
            hold NaN or infinity.

    >>> images = np.eye(2, dtype=np.float32)[:, None]
    >>> texts = np.array([[[1.0, 0.0]], [[1.0, 0.0]]], np.float32)    # the second is of the other picture
    >>> rank_of(images, texts, [0, 1]).t2i.tolist()
    [0, 1]
    """
    options = {"columns": columns, "groups": groups, "precision": precision}
    return rank_in_folds(images, texts, text_to_image, (folds,), **options)[0]


def rank_in_folds(
    images: Any,
    texts: Any,
    text_to_image: Any,
    folds: Sequence[int],
    *,
    columns: Any = None,
    groups: Any = None,
    precision: Precision = "fp32",
) -> list[Ranks]:
    """Do as `rank_of` for several numbers of folds in the same pass; return `Ranks` for each."""
    check_blocks(images, texts)
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision {precision!r}: ranks are computed in fp32 or bf16")
    owners = _whole(text_to_image, len(images), "text_to_image")
    where = np.arange(len(texts)) if columns is None else _whole(columns, len(texts), "columns")
    texts_of = None if groups is None else _whole(groups, None, "groups")
    lengths = [len(owners), len(where), len(owners if texts_of is None else texts_of)]
    if len(set(lengths)) > 1 or not len(owners):
        raise ValueError(f"{lengths[0]} captions, {lengths[1]} columns, {lengths[2]} groups: all the same, and not 0")
    plain = plain_arrays(images, texts) or (_float32(images), _float32(texts))
    return rank_scores(_Streamed(*plain, precision), owners, where, texts_of, folds)


class _Streamed:
    """`avse.ranks.Scores` that are computed when they are asked for."""

    def __init__(self, images: np.ndarray, texts: np.ndarray, precision: Precision) -> None:
        self._images, self._texts, self._precision = images, texts, precision
        self.shape = len(images), len(texts)

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Compute the tiles that hold the pairs."""
        height, width = tile_shape(*self.shape, self._texts.shape[1], self._precision)
        across = self.shape[1] // width + 1
        tile_of = rows // height * across + columns // width
        order = np.argsort(tile_of, kind="stable")
        numbers, firsts = np.unique(tile_of[order], return_index=True)
        parts = dict(zip(numbers.tolist(), np.split(order, firsts[1:])))
        found = np.empty(len(rows), np.float32)

        def number(image: int, text: int) -> int:
            return image // height * across + text // width

        wanted = score_tiles(self._images, self._texts, self._precision, lambda *first: number(*first) in parts)
        for top, left, tile in wanted:
            here = parts[number(top.start, left.start)]
            found[here] = tile[rows[here] - top.start, columns[here] - left.start]
        return found

    def tiles(self) -> Iterator[tuple[slice, slice, np.ndarray]]:
        """Compute all tiles."""
        return finite(score_tiles(self._images, self._texts, self._precision))


def _whole(values: Any, below: int | None, name: str) -> np.ndarray:
    found = np.asarray(_numpy(values))
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
        raise ValueError(f"{name} is {found.dtype} {found.shape}: whole numbers (m,) are wanted")
    if len(found) and (found.min() < 0 or (below is not None and found.max() >= below)):
        raise ValueError(f"{name} holds {found.min()} to {found.max()}, 0 to {below} - 1 are there")
    return found.astype(np.int64)


def _float32(blocks: Any) -> np.ndarray:
    return np.asarray(blocks if isinstance(blocks, np.ndarray) else _numpy(blocks.float()), np.float32)


def _numpy(values: Any) -> Any:
    torch = sys.modules.get("torch")
    return values.detach().cpu().numpy() if torch is not None and isinstance(values, torch.Tensor) else values
