"""avse: image-text retrieval with Asymmetric Visual Semantic Embedding (AAAI 2025).

The five names below are loaded on first use, so that ``import avse`` stays free of torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from avse.data import load_dataset
    from avse.evaluate import evaluate
    from avse.index import Index
    from avse.model import AVSE
    from avse.trainer import Trainer

__all__ = ["AVSE", "Index", "Trainer", "evaluate", "load_dataset"]

_HOMES = {
    "AVSE": "avse.model",
    "Index": "avse.index",
    "Trainer": "avse.trainer",
    "evaluate": "avse.evaluate",
    "load_dataset": "avse.data",
}


def __getattr__(name: str) -> Any:
    """Import an exported name, or a room of avse such as `avse.scoring`, when it is first asked for (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if not name.startswith("_") and find_spec(f"avse.{name}") is not None:
        return import_module(f"avse.{name}")
    raise AttributeError(f"module 'avse' has no attribute {name!r}; it exports {', '.join(__all__)}")


def __dir__() -> list[str]:
    """List the lazy exports beside what is loaded."""
    return sorted([*globals(), *__all__])


class _Package(ModuleType):
    """Keeps `avse.evaluate` the function: importing the submodule of that name would bind the module over it."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
