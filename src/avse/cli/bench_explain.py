"""`avse bench explain`: how faithful explanations are."""

from __future__ import annotations

import argparse
from typing import Any

from avse.cli import common, measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    count, natural = common.positive_int, common.natural_int
    parser.add_argument(
        "--scenes-model",
        default="runs/scenes/model",
        metavar="DIR",
        help="a model of made scenes (default: runs/scenes/model, from avse demo --scenes --out runs/scenes)",
    )
    parser.add_argument(
        "--scenes", default="data/scenes", metavar="DIR", help="made scenes with boxes (default: data/scenes)"
    )
    parser.add_argument(
        "--model", default="runs/demo/model", metavar="DIR", help="default: runs/demo/model, from avse demo"
    )
    parser.add_argument(
        "--data", default="data/openclipart", metavar="DIR", help="real pictures (default: data/openclipart)"
    )
    parser.add_argument("--split", default="test", help="of both data sets (default: test)")
    parser.add_argument("--pointing", type=natural, default=100, help="scenes looked at (default: 100; 0: none)")
    parser.add_argument(
        "--gradients", type=natural, default=20, help="of them also for gradients at the pixels (default: 20)"
    )
    parser.add_argument("--deletion", type=natural, default=40, help="pictures deleted (default: 40; 0: none)")
    parser.add_argument(
        "--words", type=natural, default=100, help="pictures of --data whose captions lose words (default: 100)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of the random order (default: 0)")
    parser.add_argument("--threads", type=count, default=2, help="threads (default: 2)")
    measured.add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from pathlib import Path

    import torch

    from avse.benchmarks.explaining import measure_deletion, measure_pointing, measure_words
    from avse.data import load_dataset

    measured.check_outputs(args)
    parts = []
    if args.pointing:
        parts.append(("avse demo --scenes --out runs/scenes", args.scenes_model, args.scenes))
    if args.deletion or args.words:
        parts.append(("avse demo", args.model, args.data))
    for command, *folders in parts:
        if missing := [folder for folder in folders if not Path(folder).exists()]:
            raise FileNotFoundError(f"{' and '.join(missing)}: not there; `{command}` makes them, or name others")
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = []

    def tell(row: dict[str, Any]) -> None:
        common.emit(row) if args.json else print(_line(row, rows[-1] if rows else None), flush=True)
        rows.append(row)

    if args.pointing:
        model, data = common.load_model(args.scenes_model, "cpu"), load_dataset(args.scenes, split=args.split)
        for row in measure_pointing(model, data, pictures=args.pointing, gradients=args.gradients):
            tell(row)
    if args.deletion or args.words:
        model, data = common.load_model(args.model, "cpu"), load_dataset(args.data, split=args.split)
        for measure, pictures in ((measure_deletion, args.deletion), (measure_words, args.words)):
            for row in measure(model, data, pictures=pictures, seed=args.seed) if pictures else ():
                tell(row)
    told = {"models": [args.scenes_model, args.model], "seed": args.seed}
    measured.finish(args, rows, told, "; intervals of 95 % by bootstrap over pictures")
    return 0


def _line(row: dict[str, Any], former: dict[str, Any] | None) -> str:
    """Write a row, below a heading where another measure begins."""
    head = ""
    if former is None or former["measure"] != row["measure"]:
        told = {
            "pointing": "hottest cell in the box, and heat in it",
            "deletion": f"areas under the score, cells blurred or shown, seed {row.get('seed')}",
            "words": f"area under the score, words left out, seed {row.get('seed')}",
        }[row["measure"]]
        head = f"{row['measure']}: {told}; {row['data']}\n"
    if row["measure"] == "pointing":
        both = "  ".join(f"{name} {row[name]:.3f} {_interval(row[f'{name}_ci'])}" for name in ("point", "energy"))
        if row["way"] != "explanation":
            less = (
                f"{row[f'{name}_behind']:+.3f} {_interval(row[f'{name}_behind_ci'])}" for name in ("point", "energy")
            )
            both += "  explanation " + ", ".join(less)
        size = f"{row['captions']:,} captions of {row['pictures']:,}"
    else:
        both = "  ".join(
            f"{name} {row[name]:.3f}, against random {row[f'{name}_less']:+.3f} {_interval(row[f'{name}_ci'])}"
            for name in ("deletion", "insertion", "words")
            if name in row
        )
        size = f"{row['pictures']:,} pictures"
    return f"{head}  {row['way']:26} {both}  ({size}){measured.targets(row)}"


def _interval(ends: list[float]) -> str:
    return f"({ends[0]:.3f} to {ends[1]:.3f})"
