"""What makes two captions the same text. Knows strings only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def normalize_text(text: str) -> str:
    """Return a caption with case and spaces normalised: what makes two texts identical (method, section 4).

    >>> normalize_text("  A  red Star ")
    'a red star'
    """
    return " ".join(text.casefold().split())


def text_groups(texts: Sequence[str]) -> np.ndarray:
    """Number the distinct texts in order of appearance: m texts -> (m,) int64.

    >>> text_groups(["A dog", "a cat", "a  dog"]).tolist()
    [0, 1, 0]
    """
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(normalize_text(text), len(numbers)) for text in texts], dtype=np.int64)
