"""Rows of a mapped file by plain reads, so that a few of them do not fill the memory. Knows no model and no index."""

from __future__ import annotations

import mmap
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray


def read_rows(rows: NDArray[Any], wanted: NDArray[np.int64]) -> NDArray[Any]:
    """Return ``rows[wanted]``, of a mapped file by reading them.

    The kernel may keep 2 MiB around every row of a mapped file that is touched: a few hundred would fill the memory.

    Args:
        rows: (n, ...) an array, or a mapped file or a part of one.
        wanted: (r,) row numbers, 0 to n - 1.

    Raises:
        OSError: the file is shorter than it was when it was mapped, or can't be read.
    """
    if not isinstance(rows, np.memmap) or not rows.flags.c_contiguous or not hasattr(os, "preadv"):
        return np.asarray(rows[wanted])
    size = rows.nbytes // max(1, len(rows))
    mapping = np.frombuffer(rows._mmap, np.uint8)  # type: ignore[attr-defined]
    start = rows.offset - rows.offset % mmap.ALLOCATIONGRANULARITY + rows.ctypes.data - mapping.ctypes.data
    found = np.empty((len(wanted), *rows.shape[1:]), rows.dtype)
    with open(str(rows.filename), "rb", buffering=0) as stream:
        for place in np.argsort(wanted, kind="stable").tolist():
            at = start + int(wanted[place]) * size
            if os.preadv(stream.fileno(), [found[place : place + 1].data], at) != size:
                raise OSError(f"{rows.filename}: row {wanted[place]} at byte {at:,} is cut short")
    return found
