"""The live table of a training on stderr: a row now and then, a row an epoch, and under them a bar with the time left.

Knows the names of figures, no model and no data. Into a file or a pipe it writes the rows alone.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tqdm import tqdm

HEADER_EVERY = 20
"""Rows after which the header is said again."""
_COLUMNS: tuple[tuple[str, int, int], ...] = (
    # Title, width, and when the terminal is narrow the order in which columns go (0: never).
    ("epoch", 7, 0),
    ("step", 8, 0),
    ("loss", 9, 0),
    ("L_m", 9, 5),
    ("L_reg", 8, 6),
    ("viol %", 6, 2),
    ("grad", 8, 4),
    ("pic/s", 7, 1),
    ("wait %", 6, 3),
    ("memory", 9, 7),
)


class ProgressTable:
    """Rows of means since the row before, an epoch's validation, notes; as a context it closes the bar.

    Args:
        total_steps: of the whole training.
        initial: steps done before, when resumed.
        enabled: False writes nothing at all (another process than the first, or a caller who wants quiet).
        every_seconds: time between two rows.
        epochs: of the whole training; None: unknown.
        history: the entries of a resumed run, for its epoch and its best.
        device: "cpu" or "cuda": whose memory is shown.
        stream: where to write; None: stderr.
    """

    def __init__(
        self,
        total_steps: int,
        initial: int = 0,
        enabled: bool = True,
        *,
        every_seconds: float = 15.0,
        epochs: int | None = None,
        history: Sequence[Mapping[str, Any]] = (),
        device: str = "cpu",
        stream: IO[str] | None = None,
    ) -> None:
        self.enabled, self.every_seconds, self.epochs, self.device = enabled, every_seconds, epochs, device
        self._stream = sys.stderr if stream is None else stream
        self._step, self._epoch, self._rows = initial, len(history), 0
        self._best = max((entry["val"]["rsum"] for entry in history), default=-math.inf)
        live = enabled and self._stream.isatty()
        self._bar = tqdm(
            total=total_steps,
            initial=initial,
            unit="step",
            desc="training",
            disable=not live,
            file=self._stream,
            dynamic_ncols=True,
        )
        self._clear()

    def step(self, parts: Mapping[str, float], pictures: int, waited: float) -> None:
        """Take in one step and write a row when it is time.

        Args:
            parts: loss, matching, decorrelation, gradient, violations (share 0..1): the mean of each is shown;
                empty for a step that was left out.
            pictures: of the step, over all processes.
            waited: seconds in which the step had no data.
        """
        self._step += 1
        self._bar.update(1)
        for name, value in parts.items():
            count, total = self._sums.get(name, (0, 0.0))
            self._sums[name] = (count + 1, total + value)
        self._pictures += pictures
        self._waited += waited
        self._last = time.perf_counter()
        if self.enabled and self._last - self._started >= self.every_seconds:
            self._row()

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Write what is left of the steps' figures, and an entry of the history with its validation figures."""
        if not self.enabled:
            return
        if self._last > self._started:
            self._row()
        val, best = entry["val"], entry["val"]["rsum"] >= self._best
        self._best = max(self._best, val["rsum"])
        text = f"validation rSum {val['rsum']:.1f}, R@1 i2t {val['i2t']['r1']:.1f}, t2i {val['t2i']['r1']:.1f}"
        self._write(f"{self._of_epochs(entry['epoch']):>7}  {text}{', the best so far' if best else ''}")
        self._bar.set_postfix_str(f"val rSum {self._best:.1f}")
        self._epoch = entry["epoch"] + 1
        self._clear()

    def note(self, text: str) -> None:
        """Write a line of its own above the bar, such as a warning."""
        if self.enabled:
            self._write(text)

    def __enter__(self) -> ProgressTable:
        """Return the table itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar; what was written stays."""
        self._bar.close()

    def _row(self) -> None:
        seconds = max(self._last - self._started, 1e-9)  # without the validation that may have followed
        columns = self._fitting()
        if self._rows % HEADER_EVERY == 0:
            self._write("  ".join(f"{title:>{width}}" for title, width, _ in columns))
        self._rows += 1
        cells = {
            "epoch": self._of_epochs(self._epoch),
            "step": f"{self._step}",
            "loss": self._mean("loss"),
            "L_m": self._mean("matching"),
            "L_reg": self._mean("decorrelation"),
            "viol %": self._mean("violations", 100, ".1f"),
            "grad": self._mean("gradient", 1, ".3g"),
            "pic/s": f"{self._pictures / seconds:.4g}",
            "wait %": f"{min(100.0, 100 * self._waited / seconds):.0f}",
            "memory": _gib(memory_bytes(self.device)),
        }
        self._write("  ".join(f"{cells[title]:>{width}}" for title, width, _ in columns))
        self._clear()

    def _fitting(self) -> list[tuple[str, int, int]]:
        """The columns for which the terminal has room; a file has room for all."""
        columns = list(_COLUMNS)
        if not self._stream.isatty():
            return columns
        room = shutil.get_terminal_size().columns - 1
        while sum(width + 2 for _, width, _ in columns) - 2 > room and any(order for *_, order in columns):
            columns.remove(max(columns, key=lambda column: column[2]))
        return columns

    def _mean(self, name: str, factor: float = 1, form: str = ".4g") -> str:
        count, total = self._sums.get(name, (0, 0.0))
        return format(factor * total / count, form) if count else "-"

    def _of_epochs(self, epoch: int) -> str:
        return f"{epoch + 1}/{self.epochs}" if self.epochs else f"{epoch + 1}"

    def _clear(self) -> None:
        self._sums: dict[str, tuple[int, float]] = {}
        self._pictures, self._waited = 0, 0.0
        self._started = self._last = time.perf_counter()

    def _write(self, line: str) -> None:
        self._bar.write(line, file=self._stream)
        self._stream.flush()


def memory_bytes(device: str = "cpu") -> int | None:
    """Return the bytes that this process holds now: on a GPU what torch holds there, else resident; None: not known."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.memory_reserved(device)
    try:
        return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / 2**30:.2f} GiB"
