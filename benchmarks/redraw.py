"""Redraw every picture of docs/images that needs no training: plots of kept results, drawings of the method.

    python benchmarks/redraw.py                  # all of them, into docs/images
    python benchmarks/redraw.py --out FOLDER views.png

`scoring.png` and `matching.png` come from benchmarks/results/*.json, `views.png` and `avse.png` from the code that
draws views and matches blocks, `way.png` from the boxes below. The others are answers of a trained model: demo.png is
runs/demo/searches.png at two thirds (`make demo`), page-*.png are screenshots of `avse serve --demo`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
INK, GREY, RED, BLUE, PAPER = "#222222", "#777777", "#cc6677", "#4477aa", "#f4f1ea"
IMAGE_BLOCKS = ((1.0, 0.0), (0.0, 1.0))
"""The worked example of docs/method.md: two image blocks of width 2, one a view …"""
TEXT_BLOCKS = ((0.6, 0.8), (0.28, 0.96))
"""… and two text blocks."""
WAY: dict[str, tuple[float, float, str]] = {
    "data": (0.0, 2.0, "pictures and captions,\nsplits, skipped files"),
    "encoders": (1.0, 2.0, "pixels and words\nto token features"),
    "features": (1.0, 3.0, "cache of a frozen\nencoder's grids"),
    "model": (2.0, 2.0, "views, pooling,\nblocks of unit length"),
    "trainer": (2.0, 3.0, "losses, checkpoints,\nepoch by validation"),
    "checkpoint": (3.0, 3.0, "the model's folder\nwith its digests"),
    "evaluate": (3.0, 2.0, "recalls, intervals,\nrankings"),
    "index": (2.0, 1.0, "blocks and payloads\non the disk"),
    "scoring": (3.0, 1.0, "S = sum of maxima,\nexact, first k"),
    "export": (1.0, 0.0, "ONNX, Parquet,\nQdrant, the hub"),
    "explain": (2.0, 0.0, "which block, cell,\nword"),
    "serve": (3.0, 0.0, "a page and an API"),
}
"""Room -> column, row and what it holds, for the picture of the data's way."""
ARROWS = (
    *(("data", "encoders"), ("encoders", "model"), ("encoders", "features"), ("features", "trainer")),
    *(("model", "trainer"), ("trainer", "checkpoint"), ("model", "evaluate"), ("model", "index")),
    *(("index", "scoring"), ("index", "explain"), ("index", "export"), ("scoring", "serve"), ("explain", "serve")),
)


def main() -> None:
    """Draw the named pictures, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="PICTURE", help=", ".join(PICTURES))
    parser.add_argument("--out", default=str(ROOT / "docs" / "images"), help="folder (default: docs/images)")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(PICTURES))
    if unknown:
        parser.error(f"{', '.join(unknown)}: known are {', '.join(PICTURES)}")
    for name in args.names or PICTURES:
        PICTURES[name](Path(args.out) / name)
        print(Path(args.out) / name)


def kept(name: str) -> dict[str, Any]:
    """Read the kept rows of a bench, with the machine's line as `avse bench` writes it below a plot."""
    told: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    host = told["machine"]
    told["line"] = (
        f"{host['processor']}, {host['cores']} cores, {host['threads']} used, torch {host['torch']}, {host['date']}"
    )
    return told


def scoring(out: Path) -> None:
    """Draw what `avse bench scoring --out` drew."""
    from avse.benchmarks.plot import draw_scoring

    told = kept("scoring")
    draw_scoring(told["rows"], out, told["line"])


def matching(out: Path) -> None:
    """Draw what `avse bench matching --out` drew."""
    from avse.benchmarks.plot import draw_matching

    told = kept("matching")
    draw_matching(told["rows"], out, told["line"])


def views(out: Path) -> None:
    """Draw which cells of a 7 x 7 grid each view keeps: in evaluation, drawn for training, and four small ones."""
    import torch
    from matplotlib.figure import Figure

    from avse.sampling import evaluation_views, kept_cells, mean_overlap, radial_bias_sample

    grid, large, small = (7, 7), kept_cells(49, 0.8), kept_cells(49, 0.3)
    seeded = torch.Generator().manual_seed(0)
    centers = torch.tensor([[8, 40]])
    drawn = radial_bias_sample(grid, 2, large, alpha=4.0, centers=centers, generator=seeded)[0]
    rows = (
        (f"evaluation: 2 views of {large} cells", evaluation_views(grid, 2, large)),
        (f"training: 2 views of {large} cells, drawn", drawn),
        (f"evaluation: 4 views of {small} cells", evaluation_views(grid, 4, small)),
    )
    image = _scene()
    figure = Figure(figsize=(11, 2.3), layout="constrained")
    for part, (title, cells) in zip(figure.subfigures(1, 3, width_ratios=[2, 2, 4]), rows):
        part.suptitle(f"{title},\nof which two share {100 * mean_overlap(cells[None], 49):.0f} %", fontsize=10)
        for view, axes in enumerate(part.subplots(1, len(cells))):
            _view(axes, image, cells[view].tolist(), f"view {view + 1}")
    _save(figure, out)


def method(out: Path) -> None:
    """Draw the whole method with the numbers of the worked example: views, blocks, best match, sum."""
    from matplotlib.figure import Figure

    from avse.sampling import evaluation_views
    from avse.scoring import block_matches

    images, texts = np.array([IMAGE_BLOCKS]), np.array([TEXT_BLOCKS])
    best = block_matches(images, texts)
    table = images[0] @ texts[0].T
    figure = Figure(figsize=(11, 4.4))
    image = _scene()
    _view(figure.add_axes((0.01, 0.38, 0.15, 0.46)), image, range(49), "a picture")
    for view, cells in enumerate(evaluation_views((7, 7), 2, 14)):
        _view(figure.add_axes((0.22, 0.56 - 0.44 * view, 0.13, 0.36)), image, cells.tolist(), f"view {view + 1}")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_axis_off()
    for row, middle in enumerate((0.74, 0.30)):
        _arrow(axes, (0.165, 0.58), (0.215, middle))
        _arrow(axes, (0.355, middle), (0.40, middle))
        _box(axes, (0.405, middle - 0.05, 0.115, 0.10), f"image block {row + 1}\n{images[0, row].tolist()}", BLUE)
        _arrow(axes, (0.525, middle), (0.585, 0.60 - 0.18 * row))
    axes.text(0.29, 0.05, "encoder, pooling: one vector a view,\ncut into blocks of length 1", **_SMALL)
    for column in range(2):
        left = 0.60 + 0.12 * column
        _box(axes, (left - 0.005, 0.74, 0.115, 0.10), f"text block {column + 1}\n{texts[0, column].tolist()}", RED)
        for row in range(2):
            won = best.blocks[0, 0, column] == row
            face = "#f6d9a8" if won else PAPER
            _box(axes, (left, 0.53 - 0.18 * row, 0.105, 0.15), f"{table[row, column]:.2f}", face, bold=won)
        _arrow(axes, (0.71, 0.92), (left + 0.05, 0.85))
    axes.text(0.71, 0.935, "“a striped green square”", ha="center", fontsize=11, style="italic", color=INK)
    told = " + ".join(f"{value:.2f}" for value in best.scores[0, 0])
    axes.text(0.71, 0.26, f"S = {told} = {best.scores.sum():.2f}", ha="center", fontsize=13, weight="bold", color=INK)
    axes.text(
        0.715, 0.14, "each text block takes its best image block;\nwhat no block asks for costs nothing", **_SMALL
    )
    _arrow(axes, (0.84, 0.28), (0.885, 0.40))
    _box(axes, (0.885, 0.36, 0.105, 0.30), "index:\nall pictures\nranked by S", "#dde8dd")
    _save(figure, out)


def way(out: Path) -> None:
    """Draw which room hands what to which: from pairs to a trained model, figures, an index and answers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.45, 3.45), ylim=(-0.45, 3.45))
    axes.set_axis_off()
    for start, end in ARROWS:
        (x0, y0, _), (x1, y1, _) = WAY[start], WAY[end]
        dx, dy = np.sign(x1 - x0), np.sign(y1 - y0)
        _arrow(axes, (x0 + 0.36 * dx, y0 + 0.31 * dy), (x1 - 0.36 * dx, y1 - 0.31 * dy))
    for name, (x, y, text) in WAY.items():
        _box(axes, (x - 0.36, y - 0.3, 0.72, 0.6), "", PAPER)
        axes.text(x, y + 0.14, name, ha="center", va="center", fontsize=12, weight="bold", color=INK)
        axes.text(x, y - 0.1, text, ha="center", va="center", fontsize=9, color=INK)
    _save(figure, out)


PICTURES: dict[str, Callable[[Path], None]] = {
    "scoring.png": scoring,
    "matching.png": matching,
    "views.png": views,
    "avse.png": method,
    "way.png": way,
}
"""File -> what draws it."""
_SMALL: Any = {"ha": "center", "va": "center", "fontsize": 9, "color": GREY}


def _scene() -> Any:
    """Return one made scene as an array (224, 224, 3)."""
    from avse.data.scenes import draw

    return np.asarray(draw(seed=4, number=0, size=224)[0].convert("RGB"))


def _view(axes: Any, image: Any, cells: Any, title: str) -> None:
    """Show a picture with its 7 x 7 cells, those that a view leaves out greyed."""
    from matplotlib.patches import Rectangle

    axes.imshow(image, extent=(0, 7, 7, 0))
    for cell in set(range(49)) - set(cells):
        axes.add_patch(Rectangle((cell % 7, cell // 7), 1, 1, color="#555555", alpha=0.82, linewidth=0))
    for line in range(8):
        axes.axhline(line, color="white", linewidth=0.6)
        axes.axvline(line, color="white", linewidth=0.6)
    axes.set(xticks=[], yticks=[], xlim=(0, 7), ylim=(7, 0))
    axes.set_title(title, fontsize=9, color=INK)


def _box(axes: Any, place: tuple[float, float, float, float], text: str, color: str, bold: bool = False) -> None:
    """Draw a box (left, bottom, width, height) with a text in its middle."""
    from matplotlib.patches import Rectangle

    left, bottom, width, height = place
    strong = color in (BLUE, RED)
    axes.add_patch(Rectangle((left, bottom), width, height, facecolor=color, edgecolor=GREY, linewidth=0.8))
    axes.text(
        left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=12 if bold else 9,
        weight="bold" if bold else "normal", color="white" if strong else INK,
    )  # fmt: skip


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 1.1})


def _save(figure: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
