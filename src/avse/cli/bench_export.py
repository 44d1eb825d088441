"""``avse bench export``: what each format of an export costs and loses."""

from __future__ import annotations

import argparse
from typing import Any

from avse.cli import common, measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    count = common.positive_int
    parser.add_argument("model", nargs="?", default="runs/demo/model", metavar="MODEL", help="default: the demo's")
    parser.add_argument(
        "--index", default="runs/demo/index.avse", metavar="INDEX", help="of its pictures (default: the demo's)"
    )
    parser.add_argument("--sentences", metavar="FILE.txt", help="a question a line (default: twelve made ones)")
    parser.add_argument("-k", type=count, default=10, help="answers to a question (default: 10)")
    parser.add_argument("--runs", type=count, default=7, help="timed turns of each format (default: 7)")
    parser.add_argument("--threads", type=count, default=1, help="threads (default: 1)")
    measured.add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    from pathlib import Path

    import torch

    from avse.benchmarks.exporting import measure_exports
    from avse.data.entries import read_lines
    from avse.start import open_model

    measured.check_outputs(args)
    torch.set_num_threads(args.threads)
    sentences = list(SENTENCES)
    if args.sentences:
        sentences = [line.strip() for line in read_lines(Path(args.sentences)) if line.strip()]
        if not sentences:
            raise ValueError(f"{args.sentences} holds no sentence: write one a line")
    rows: list[dict[str, Any]] = []
    for row in measure_exports(open_model(args.model), args.index, sentences, k=args.k, runs=args.runs):
        if not args.json and not rows:
            print(f"{'format':22} {'what it holds':18} {'largest difference':>18} {'MB':>7} {'ms a query':>10}")
        common.emit(row) if args.json else print(_line(row), flush=True)
        rows.append(row)
    told = {"sentences": len(sentences), "k": args.k, "runs": args.runs}
    note = f"; {len(sentences)} sentences, first {args.k}, medians of {args.runs} turns"
    measured.finish(args, rows, told, note)
    return 0


def _line(row: dict[str, Any]) -> str:
    head = f"{row['format']:22} {row['what']:18}"
    if row["note"]:
        return f"{head} left out: {row['note']}"
    return f"{head} {row['difference']:18.1e} {row['bytes'] / 1e6:7.1f} {1e3 * row['seconds']:10.1f}"


SENTENCES = (
    "a flower",
    "a red car",
    "a dog and a cat",
    "a house with a tree beside it",
    "the flag of a country",
    "a smiling face",
    "a bird that sits on a branch",
    "a boat on the sea under a yellow sun",
    "a computer",
    "a man who plays a guitar",
    "a green apple with a leaf",
    "an arrow that points to the left",
)
"""The questions where no file is given."""
