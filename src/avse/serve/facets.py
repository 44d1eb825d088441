"""Which fields the entries of an index have, for filters: numbers, dates, texts with their commonest values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from avse.index.contract import Payload
from avse.index.pictures import UPLOADED, is_upload
from avse.index.where import has

MOST_ENTRIES = 20_000
"""So many entries are looked at, the first that come."""
_VALUES = 50
_FEW = 20  # different texts make a list, whether or not each entry has its own
_LONGEST = 100  # characters of a value that may be chosen from a list
_NOISE = frozenset({"path", "paths", "name", "sha256", "bytes", "line", "text"})


def find_facets(pages: Iterable[list[tuple[str, Payload]]]) -> list[dict[str, Any]]:
    """Return the fields in the order of their names, as `avse.serve.wire.Facet`.

    What no two entries share is no help in a list: texts such as titles, of which nearly each entry has its own, are
    left out, and of more than 50 texts those are kept that are there twice or more.
    """
    found: dict[str, list[Any]] = {}
    seen = 0
    for page in pages:
        for _, payload in page:
            for name, value in payload.items():
                if name not in _NOISE and has(value) and not (name == UPLOADED and is_upload(payload)):
                    found.setdefault(name, []).append(value)
        seen += len(page)
        if seen >= MOST_ENTRIES:
            break
    return [facet for name in sorted(found) if (facet := _facet(name, found[name])) is not None]


def _facet(name: str, values: list[Any]) -> dict[str, Any] | None:
    items = [item for value in values for item in (value if isinstance(value, list) else [value])]
    if any(isinstance(item, (dict, list)) for item in items):
        return None
    about: dict[str, Any] = {"name": name, "count": len(values), "values": [], "min": None, "max": None}
    if all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in items):
        return {**about, "kind": "number", "min": min(items), "max": max(items)}
    texts = [str(item).lower() if isinstance(item, bool) else str(item) for item in items]
    if all(map(_is_date, texts)):
        return {**about, "kind": "date", "min": min(texts), "max": max(texts)}
    if (different := len(set(texts))) > _FEW and different > 0.8 * len(texts):
        return None
    counts = Counter(text for text in texts if len(text) <= _LONGEST)
    least = 1 if len(counts) <= _VALUES else 2
    common = [{"value": text, "count": count} for text, count in counts.most_common(_VALUES) if count >= least]
    return {**about, "kind": "text", "values": common}


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return len(text) >= 10
