"""Plots of a training. Needs matplotlib (extra `plots`); without it a line in the log says so and nothing is drawn."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PLOTS_HINT = "curves are not drawn: matplotlib is missing (pip install 'avse[plots]')"


def draw_curves(histories: dict[str, list[dict[str, Any]]], out: Path) -> bool:
    """Draw loss and validation rSum over the epochs, one line a system, as PNG.

    Args:
        histories: name -> history of a `Trainer`.
        out: the PNG file.

    Returns:
        Whether it was drawn.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        log.warning(PLOTS_HINT)
        return False
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, history in histories.items():
        epochs = [entry["epoch"] + 1 for entry in history]
        first = history[0].get("loss") or 1.0
        left.plot(epochs, [entry.get("loss", 0.0) / first for entry in history], marker=".", label=name or None)
        rsums = [entry["val"]["rsum"] for entry in history]
        line = right.plot(epochs, rsums, marker=".", label=name or None)[0]
        best = max(range(len(rsums)), key=rsums.__getitem__)
        right.plot(epochs[best], rsums[best], marker="o", markersize=8, fillstyle="none", color=line.get_color())
    left.set(title="training loss, relative to the first epoch", xlabel="epoch")
    right.set(title="validation rSum (ring: the epoch kept)", xlabel="epoch")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if any(histories):
        right.legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    return True
