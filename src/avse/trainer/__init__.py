"""Training: batches that are fed, steps on one process or many, checkpoints that survive a kill, a watch over it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avse.trainer.loop import Trainer, TrainResult
    from avse.trainer.state import TrainingError

__all__ = ["TrainResult", "Trainer", "TrainingError"]


def __getattr__(name: str) -> Any:
    """Import an exported name when it is first asked for: reading a run's record needs no torch (PEP 562)."""
    if name in __all__:
        return getattr(import_module("avse.trainer.loop"), name)
    raise AttributeError(f"module 'avse.trainer' has no attribute {name!r}; it exports {', '.join(__all__)}")
