"""AEOM, the asymmetric embedding optimal matching: S(I, T) = Σ_j max_i <v_i, t_j> (method, section 3).

The definition, for numpy and for torch. Torch is touched only when a torch tensor comes in. Knows no model.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

    Blocks = TypeVar("Blocks", np.ndarray, torch.Tensor)
else:
    Blocks = TypeVar("Blocks")

TILE = (256, 512)
"""Images and text blocks of one tile, whose running maximum (half a MiB in float32) stays in the cache."""


class BlockMatches(NamedTuple):
    """Which image block answered each text block, and how well."""

    blocks: Any
    """(n, m, Q) int64, index i of the best image block; the lowest one of a tie."""
    scores: Any
    """(n, m, Q) its cosine; their sum over Q is S."""


def _check_blocks(images: Any, texts: Any) -> None:
    """Raise ValueError unless the shapes are (n, P, C) and (m, Q, C)."""
    if images.ndim != 3 or texts.ndim != 3 or images.shape[2] != texts.shape[2]:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, texts {tuple(texts.shape)}; expected (n, P, C) and (m, Q, C)"
        )
    if images.shape[1] == 0 or texts.shape[1] == 0:
        raise ValueError(f"no blocks: images have {images.shape[1]}, texts {texts.shape[1]}; both need at least one")


def aeom(images: Blocks, texts: Blocks) -> Blocks:
    """Score every image against every text: S = Σ_j max_i <v_i, t_j>.

    Args:
        images: (n, P, C), unit blocks, numpy or torch.
        texts: (m, Q, C), unit blocks, of the same kind.

    Returns:
        (n, m) scores in [-Q, Q], of the same kind; differentiable in torch.

    Raises:
        ValueError: for other shapes.

    >>> image = np.array([[[1.0, 0.0], [0.0, 1.0]]])           # one image, two blocks
    >>> text = np.array([[[1.0, 0.0], [0.6, 0.8]]])            # one text, two blocks
    >>> aeom(image, text).tolist()                             # 1 from the first block, 0.8 from the second
    [[1.8]]
    """
    _check_blocks(images, texts)
    join = np.concatenate if isinstance(images, np.ndarray) else sys.modules["torch"].cat
    width = max(1, TILE[1] // texts.shape[1])
    rows = []
    for start in range(0, max(1, len(images)), TILE[0]):
        part = images[start : start + TILE[0]]
        tiles = [_tile(part, texts[left : left + width]) for left in range(0, max(1, len(texts)), width)]
        rows.append(tiles[0] if len(tiles) == 1 else join(tiles, 1))
    return rows[0] if len(rows) == 1 else join(rows, 0)


def _tile(images: Any, texts: Any) -> Any:
    """Scores of a few images: the image block is the outer loop, so that only a running maximum is held."""
    columns = texts.reshape(-1, texts.shape[2]).T
    maximum = np.maximum if isinstance(images, np.ndarray) else sys.modules["torch"].maximum
    best = images[:, 0] @ columns
    for block in range(1, images.shape[1]):
        best = maximum(best, images[:, block] @ columns)
    return best.reshape(len(images), texts.shape[0], texts.shape[1]).sum(-1)


def block_matches(images: Blocks, texts: Blocks) -> BlockMatches:
    """Tell for each text block which image block matches best.

    Args:
        images: (n, P, C) unit blocks, numpy or torch.
        texts: (m, Q, C) unit blocks, of the same kind.

    Returns:
        Indices and cosines, (n, m, Q) each; n·m·P·Q floats are held on the way.

    >>> match = block_matches(np.array([[[1.0, 0.0], [0.0, 1.0]]]), np.array([[[0.0, 1.0], [0.6, 0.8]]]))
    >>> match.blocks.tolist(), match.scores.tolist()
    ([[[1, 1]]], [[[1.0, 0.8]]])
    """
    _check_blocks(images, texts)
    flat = images.reshape(-1, images.shape[2]) @ texts.reshape(-1, texts.shape[2]).T
    grid = flat.reshape(images.shape[0], images.shape[1], texts.shape[0], texts.shape[1])
    if isinstance(grid, np.ndarray):
        return BlockMatches(grid.argmax(axis=1), grid.max(axis=1))
    scores, blocks = grid.max(dim=1)
    return BlockMatches(blocks, scores)
