"""The plots of `avse bench matching` and `avse bench scoring`. Needs matplotlib (extra `plots`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from avse.extras import needs


def check_plots() -> None:
    """Raise ImportError with the way out where matplotlib is missing."""
    with needs("plots", "the plot"):
        import matplotlib  # noqa: F401


def draw_matching(rows: list[dict[str, Any]], out: Path, machine: str) -> None:
    """Draw the rows of `measure_matching` as PNG, the machine's line below.

    Raises:
        ImportError: matplotlib is missing.
    """
    check_plots()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.35, 1, 1])
    pairs = [row for row in rows if row["measure"] == "pair"][::-1]
    bars = left.barh([row["way"] for row in pairs], [row["us_per_pair"] for row in pairs], color="#4477aa")
    left.bar_label(bars, [f" {row['us_per_pair']:.3g}  ({row['against_aeom']:.3g}x)" for row in pairs], fontsize=8)
    left.set(title="a pair (times AEOM)", xlabel="µs, one thread" if pairs[0]["threads"] == 1 else "µs", xscale="log")
    left.margins(x=0.35)
    for row in rows:
        if row["measure"] != "growth":
            continue
        axes, unit = (right, "query") if row["over"] == "gallery" else (middle, "pair")
        sizes, values = np.asarray(row["points"], np.float64).T
        name = {"C": "block width C", "D": "width D", "gallery": "images N"}[row["over"]]
        line = axes.loglog(sizes, values, "o", label=f"{name}: exponent {row['exponent']:.2f}\n({row['at']})")[0]
        slope, offset = np.polyfit(np.log(sizes), np.log(values), 1)
        axes.loglog(sizes, np.exp(offset) * sizes**slope, color=line.get_color(), lw=1)
        axes.set(title=f"growth of AEOM: µs a {unit}", xlabel="images N" if axes is right else "C or D")
        ticks = sorted({int(x) for line in axes.get_lines() for x in line.get_xdata()})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
        axes.minorticks_off()
    for axes in (middle, right):
        axes.margins(y=0.3)
        axes.legend(fontsize=8, loc="upper left")
        axes.grid(alpha=0.3)
    figure.supxlabel(machine, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def draw_scoring(rows: list[dict[str, Any]], out: Path, machine: str) -> None:
    """Draw the rows of `measure_scoring` as PNG, a panel a measure, the machine's line below.

    Raises:
        ImportError: matplotlib is missing.
    """
    check_plots()
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["measure"] != "limit" and row["seconds"] is not None:
            panels.setdefault((row["measure"], row["data"], row["at"]), []).append(row)
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(6.5 * columns, 0.6 + 2.3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, ((measure, data, at), part) in zip(grid, panels.items()):
        part = part[::-1]
        colors = ["#cc6677" if row["way"].startswith("avse") else "#4477aa" for row in part]
        compared = all(row["ratio"] for row in part)
        lengths = [row["ratio"] if compared else row["seconds"] for row in part]
        bars = axes.barh([row["way"] for row in part], lengths, color=colors)
        told = [f"{row['ratio']:.2f}x" if compared else f"{row['seconds']:.3g} s" for row in part]
        rates = [f", {row['rate']:.3g} {row['unit']}" if row["rate"] else "" for row in part]
        axes.bar_label(bars, [f" {text}{rate}" for text, rate in zip(told, rates)], fontsize=8)
        title = f"{measure}{'' if data == 'random' else ', ' + data}\n{at}"
        axes.set_title(title, fontsize=9)
        axes.margins(x=0.5)
        axes.tick_params(labelsize=8)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    limits = [f"{row['way']} {row['rate']:.0f} {row['unit']}" for row in rows if row["measure"] == "limit"]
    figure.supxlabel(
        f"times as fast as the way compared with (1x), or seconds; limits: {', '.join(limits)}\n{machine}", fontsize=8
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
