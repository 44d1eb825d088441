"""AEOM, the asymmetric embedding optimal matching: S(I, T) = Σ_j max_i ⟨v_i, t_j⟩ (method, section 3).

The definition, for numpy and for torch on any device, with gradients; float32 on the CPU without gradients goes by
`avse.scoring.tiles`. Torch is touched only when a torch tensor comes in. Knows no model.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from avse.scoring.tiles import Precision, score_tiles

if TYPE_CHECKING:
    import torch

    Blocks = TypeVar("Blocks", np.ndarray, torch.Tensor)
else:
    Blocks = TypeVar("Blocks")

TILE = {"cpu": (256, 512), "other": (2048, 8192)}
"""Images and text blocks of one tile of the definition: what a running maximum on the way holds."""


class BlockMatches(NamedTuple):
    """Which image block answered each text block, and how well."""

    blocks: Any
    """(n, m, Q) int64, index i of the best image block; the lowest one of a tie."""
    scores: Any
    """(n, m, Q) its cosine; their sum over Q is S."""


def check_blocks(images: Any, texts: Any) -> None:
    """Raise ValueError unless the shapes are (n, P, C) and (m, Q, C)."""
    if images.ndim != 3 or texts.ndim != 3 or images.shape[2] != texts.shape[2]:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, texts {tuple(texts.shape)}; expected (n, P, C) and (m, Q, C)"
        )
    if images.shape[1] == 0 or texts.shape[1] == 0:
        raise ValueError(f"no blocks: images have {images.shape[1]}, texts {texts.shape[1]}; both need at least one")


def aeom(images: Blocks, texts: Blocks, precision: Precision = "fp32") -> Blocks:
    """Score every image against every text: S = Σ_j max_i ⟨v_i, t_j⟩.

    Args:
        images: (n, P, C), unit blocks, numpy or torch.
        texts: (m, Q, C), unit blocks, of the same kind.
        precision: "fp32" multiplies in the type of the input; "bf16" multiplies float32 in bfloat16, where that is
            faster here: twice as fast; error of a score below 0.006 for each text block, and below 0.004 in all for
            random blocks of P,Q,C = 8,4,256.

    Returns:
        (n, m) scores in [-Q, Q], of the same kind; float32, or float64 for float64. Differentiable in torch.

    Raises:
        ValueError: for other shapes or another precision.

    >>> image = np.array([[[1.0, 0.0], [0.0, 1.0]]])           # one image, two blocks
    >>> text = np.array([[[1.0, 0.0], [0.6, 0.8]]])            # one text, two blocks
    >>> aeom(image, text).tolist()                             # 1 from the first block, 0.8 from the second
    [[1.8]]
    """
    check_blocks(images, texts)
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision {precision!r}: a matrix is computed in fp32 or bf16 (int8 is for topk)")
    plain = plain_arrays(images, texts)
    if plain is not None:
        scores = np.empty((len(images), len(texts)), np.float32)
        for rows, columns, tile in score_tiles(*plain, precision):
            scores[rows, columns] = tile
        return scores if isinstance(images, np.ndarray) else sys.modules["torch"].from_numpy(scores)
    torch = sys.modules.get("torch")
    if precision == "bf16" and not isinstance(images, np.ndarray) and torch and images.dtype == torch.float32:
        return _generic(images.to(torch.bfloat16), texts.to(torch.bfloat16))
    return _generic(images, texts)


def plain_arrays(images: Any, texts: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Return both as float32 arrays where they are float32 (then without a copy) or half of it and need no gradient."""
    found = []
    for blocks in (images, texts):
        if not isinstance(blocks, np.ndarray):
            torch = sys.modules["torch"]
            if blocks.device.type != "cpu" or (blocks.requires_grad and torch.is_grad_enabled()):
                return None
            blocks = blocks.detach().float().numpy() if blocks.dtype in (torch.bfloat16, torch.float16) else blocks
            blocks = blocks if isinstance(blocks, np.ndarray) else blocks.detach().numpy()
        blocks = blocks.astype(np.float32) if blocks.dtype == np.float16 else blocks
        if blocks.dtype != np.float32:
            return None
        found.append(blocks)
    return found[0], found[1]


def _generic(images: Any, texts: Any) -> Any:
    """Score on any device, in any type, with gradients."""
    join = np.concatenate if isinstance(images, np.ndarray) else sys.modules["torch"].cat
    on_cpu = isinstance(images, np.ndarray) or images.device.type == "cpu"
    step, width = TILE["cpu" if on_cpu else "other"]
    width = max(1, width // texts.shape[1])
    rows = []
    for start in range(0, max(1, len(images)), step):
        part = images[start : start + step]
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
    grid = best.reshape(len(images), texts.shape[0], texts.shape[1])
    if isinstance(grid, np.ndarray) or grid.dtype.itemsize >= 4:
        return grid.sum(-1)
    return grid.sum(-1, dtype=sys.modules["torch"].float32)  # in half of it a sum of cosines would lose what they have


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
    check_blocks(images, texts)
    flat = images.reshape(-1, images.shape[2]) @ texts.reshape(-1, texts.shape[2]).T
    grid = flat.reshape(images.shape[0], images.shape[1], texts.shape[0], texts.shape[1])
    if isinstance(grid, np.ndarray):
        return BlockMatches(grid.argmax(axis=1), grid.max(axis=1))
    scores, blocks = grid.max(dim=1)
    return BlockMatches(blocks, scores)
