"""Curves for TensorBoard (extra `tensorboard`): scalars by step and by epoch.

Knows names and numbers; the package is loaded when a board is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from avse.extras import needs


class Board:
    """Event files in a folder that `tensorboard --logdir` shows; as a context it writes what is left.

    Args:
        folder: where the event files lie; a resumed run adds one.
        purge_step: first step that this piece of the run writes: what the folder has from there on is no longer shown,
            be it of a piece that was killed or, at 0, of a former run.

    Raises:
        ImportError: the package is missing; the message says how to get it.
    """

    def __init__(self, folder: str | Path, purge_step: int = 0) -> None:
        with needs("tensorboard", "train.tensorboard=true", ", or set it to false"):
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, flush_secs=30)

    def step(self, step: int, parts: Mapping[str, float]) -> None:
        """Write a step's figures as train/NAME; `step` counts from 0."""
        self._scalars("train", parts, step)

    def epoch(self, step: int, entry: Mapping[str, Any]) -> None:
        """Write an entry of the history at its last step (0-based): its numbers as epoch/NAME, validation as val/NAME.

        The step is the axis of both, so that a purge reaches them and curves lie below one another.
        """
        val = entry.get("val") or {}
        self._scalars("epoch", {name: value for name, value in entry.items() if name != "val"}, step)
        self._scalars("val", val, step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()

    def __enter__(self) -> Board:
        """Return the board itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left."""
        self.close()

    def _scalars(self, group: str, values: Mapping[str, Any], step: int) -> None:
        """Write numbers; parts of a mapping as NAME_KEY, of a list as NAME_0, ...; what is no number is left out."""
        for name, value in values.items():
            if isinstance(value, Mapping):
                self._scalars(group, {f"{name}_{key}": part for key, part in value.items()}, step)
            elif isinstance(value, (list, tuple)):
                self._scalars(group, {f"{name}_{i}": part for i, part in enumerate(value)}, step)
            elif isinstance(value, (int, float)):
                self._writer.add_scalar(f"{group}/{name}", float(value), step)
