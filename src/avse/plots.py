"""Plots of a training. Needs matplotlib (extra `plots`); without it a line in the log says so and nothing is drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from avse.extras import MissingExtraError, needs

log = logging.getLogger(__name__)

History = list[dict[str, Any]]
_Value = Callable[[dict[str, Any]], Any]


def draw_curves(histories: dict[str, History], out: Path) -> bool:
    """Draw one training in detail (losses, violations, rates, validation), or several against each other, as PNG.

    Args:
        histories: name -> history of a `Trainer`; what an older history lacks is left out.
        out: the PNG file.

    Returns:
        Whether it was drawn.
    """
    try:
        with needs("plots", "drawing the curves"):
            from matplotlib.figure import Figure
    except MissingExtraError as missing:
        log.warning("%s", missing)
        return False
    figure: Any = Figure(figsize=(9, 3.4) if len(histories) > 1 else (13, 6.6), layout="constrained")
    if len(histories) > 1:
        _compare(figure, histories)
    else:
        _detail(figure, next(iter(histories.values()), []))
    for axes in figure.axes:
        axes.grid(alpha=0.3)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    return True


def _compare(figure: Any, histories: dict[str, History]) -> None:
    """Loss and validation rSum, one line a system."""
    left, right = figure.subplots(1, 2)
    for name, history in histories.items():
        epochs = [entry["epoch"] + 1 for entry in history]
        first = history[0].get("loss") or 1.0
        left.plot(epochs, [entry.get("loss", 0.0) / first for entry in history], marker=".", label=name)
        rsums = [entry["val"]["rsum"] for entry in history]
        line = right.plot(epochs, rsums, marker=".", label=name)[0]
        best = max(range(len(rsums)), key=rsums.__getitem__)
        right.plot(epochs[best], rsums[best], marker="o", markersize=8, fillstyle="none", color=line.get_color())
    left.set_title("training loss, relative to the first epoch")
    right.set_title("validation rSum (ring: the epoch kept)")
    right.legend(fontsize=8)


def _detail(figure: Any, history: History) -> None:
    """Six panels of one training; the dashed line is the epoch kept, a red one an epoch with a collapse."""
    loss, share, rate, rsum, i2t, t2i = figure.subplots(2, 3).flat
    parts: dict[str, _Value] = {
        "loss": lambda entry: entry.get("loss"),
        "L_m": lambda entry: entry.get("matching"),
        "L_reg": lambda entry: entry.get("decorrelation"),
    }
    shares: dict[str, _Value] = {
        "violations": lambda entry: entry.get("violations"),
        "spread of images": lambda entry: entry.get("spread_images"),
        "spread of texts": lambda entry: entry.get("spread_texts"),
    }
    rates = max((len(entry.get("lr", [])) for entry in history), default=0)
    _lines(loss, history, parts, "training loss and its parts", span=20)
    _lines(share, history, shares, "violations of the margin, spread (shares)")
    names = {1: ["rate"], 2: ["heads", "encoders"]}.get(rates, [f"rate {i + 1}" for i in range(rates)])
    rates_of = {name: _item(i) for i, name in enumerate(names)}
    _lines(rate, history, rates_of, "learning rates at the epoch's end", span=20)
    _lines(rsum, history, {"rSum": lambda entry: entry["val"]["rsum"]}, "validation rSum")
    for axes, side, title in ((i2t, "i2t", "image to text"), (t2i, "t2i", "text to image")):
        recalls = {f"R@{k}": _recall(side, f"r{k}") for k in (1, 5, 10)}
        _lines(axes, history, recalls, f"validation {title}, percent")
    if not history:
        return
    last_best = max(reversed(history), key=lambda entry: entry["val"]["rsum"])
    for axes in figure.axes:
        axes.set_xlim(history[0]["epoch"] + 0.5, history[-1]["epoch"] + 1.5)
        axes.axvline(last_best["epoch"] + 1, color="black", linestyle="--", linewidth=1, alpha=0.6)
        for entry in history:
            if entry.get("collapse"):
                axes.axvline(entry["epoch"] + 1, color="red", linewidth=1, alpha=0.6)
    told = f"kept: epoch {last_best['epoch'] + 1} with validation rSum {last_best['val']['rsum']:.1f} (dashed)"
    told += "; red: collapse" if any(entry.get("collapse") for entry in history) else ""
    figure.suptitle(told, fontsize=11)


def _lines(axes: Any, history: History, values: dict[str, _Value], title: str, span: float | None = None) -> None:
    """Draw what the history has of some values; logarithmic where they are positive and span more than `span`."""
    axes.set_title(title, fontsize=10)
    drawn: list[float] = []
    for name, value in values.items():
        points = [(entry["epoch"] + 1, value(entry)) for entry in history if value(entry) is not None]
        if points and any(y != 0 for _, y in points):
            drawn += [y for _, y in points]
            axes.plot(*zip(*points), marker=".", label=name)
    if not drawn:
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes, color="grey")
        return
    if span is not None and min(drawn) > 0 and max(drawn) > span * min(drawn):
        axes.set_yscale("log")
    axes.legend(fontsize=8)


def _item(place: int) -> _Value:
    return lambda entry: entry["lr"][place] if place < len(entry.get("lr", [])) else None


def _recall(side: str, name: str) -> _Value:
    return lambda entry: entry["val"].get(side, {}).get(name)
