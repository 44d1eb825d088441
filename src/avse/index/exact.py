"""Scores in float64, each row by the same sums wherever it lies, so that equal rows tie exactly. Knows no store."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from avse.index.contract import Blocks, Side

ROUNDING = 1e-5
"""Of a float32 score, for each query block of unit length: far above any engine's rounding error."""
_ROWS = 64


def exact_scores(blocks: Blocks, query: Blocks, side: Side) -> NDArray[np.float64]:
    """Score n stored embeddings against one query in float64.

    Args:
        blocks: (n, P, C) images or (n, Q, C) texts.
        query: (R, C), the other side's blocks; they may be scaled.
        side: What ``blocks`` are.

    Returns:
        (n,) Σ_r max_i <v_i, q_r> for images, Σ_j max_r <q_r, t_j> for texts.
    """
    scores = np.empty(len(blocks))
    asked = query.astype(np.float64)[None, :, None]
    for at in range(0, len(blocks), _ROWS):
        similar = (blocks[at : at + _ROWS].astype(np.float64)[:, None] * asked).sum(-1)  # (n, R, blocks)
        scores[at : at + _ROWS] = similar.max(2 if side == "images" else 1).sum(-1)
    return scores


def rounding(query: Blocks) -> float:
    """Return how far a float32 score of ``query`` (R, C) may lie from the exact one, generously."""
    return float(ROUNDING * np.linalg.norm(query, axis=-1).sum())
