"""The rows of `avse bench scoring`: every one has the same fields. Knows no scores."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

EINSUM = "einsum + max"
"""The way of research code, against which matrices are compared."""
FIELDS = {
    "measure": "what is measured",
    "way": "how",
    "data": "random, or a model and a data set",
    "at": "sizes",
    "seconds": "median of the turns; None: not measured, and the note says why",
    "rate": "work a second",
    "unit": "of the rate",
    "against": "the way that the ratio compares with",
    "ratio": "times as fast as that way",
    "of_limit": "share of the same library's matrix product, measured in the same turns",
    "error": "largest difference from float64 on a sample",
    "differing": "share of the queries whose first k are others than in fp32, ties aside",
    "peak_mib": "largest resident size of the process",
    "targets": "what the issue wants: wanted, found, reached",
    "note": "what one must know of it",
}
"""Field -> what it is."""


def empty_row(measure: str, way: str, at: str, **known: Any) -> dict[str, Any]:
    """Return a row with every field; what is not known is None."""
    row: dict[str, Any] = dict.fromkeys(FIELDS)
    return row | {"measure": measure, "way": way, "at": at, "data": "random", "targets": []} | known


def target(wanted: str, found: float | None, reached: bool | None) -> dict[str, Any]:
    """Return what the issue wants of a row, what was found, and whether that is enough; None: not known here."""
    return {"wanted": wanted, "found": found, "reached": reached}


def at_least(limit: float, row: dict[str, Any], field: str) -> dict[str, Any]:
    """Return the target that a field of a row reaches a limit."""
    return target(f"{field} >= {limit:g}", row[field], row[field] >= limit)


def at_most(limit: float, row: dict[str, Any], field: str) -> dict[str, Any]:
    """Return the target that a field of a row stays within a limit."""
    return target(f"{field} <= {limit:g}", row[field], row[field] <= limit)


def sizes_of(numbers: Iterable[int]) -> str:
    """Write P,Q,C or a part of it."""
    return ",".join(map(str, numbers))
