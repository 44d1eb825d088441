"""``avse bench serve``: the server under load."""

from __future__ import annotations

import argparse
from typing import Any

from avse.cli import common, measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    count = common.positive_int
    parser.add_argument(
        "--index", default="runs/demo/index.avse", metavar="INDEX", help="of images (default: the demo's)"
    )
    parser.add_argument("--model", metavar="DIR", help="folder of the model, where the index's own has moved")
    parser.add_argument("--questions", type=count, default=200, help="of a turn of one client (default: 200)")
    parser.add_argument("--runs", type=count, default=5, help="turns of each way (default: 5)")
    parser.add_argument("-k", type=count, default=10, help="answers to a question (default: 10)")
    parser.add_argument("--batch", type=count, default=32, help="questions answered together (default: 32)")
    parser.add_argument(
        "--requests", type=common.natural_int, default=20_000, help="for the memory (default: 20000; 0: not measured)"
    )
    parser.add_argument("--threads", type=count, default=2, help="of the model (default: 2)")
    measured.add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    import logging

    import torch

    from avse.benchmarks.serving import Sizes, measure_serving
    from avse.index import Index
    from avse.serve import Limits

    measured.check_outputs(args)
    logging.getLogger("avse.serve").setLevel(logging.WARNING)
    torch.set_num_threads(args.threads)
    sizes = Sizes(args.questions, args.runs, args.k, args.requests)
    rows: list[dict[str, Any]] = []
    with Index.open(args.index, model=args.model) as index:
        entries, store = len(index), index.store
        for row in measure_serving(index, sizes, Limits(batch=args.batch)):
            if args.json:
                common.emit(row)
            else:
                print(_line(row) + measured.targets(row), flush=True)
            rows.append(row)
    told = {"entries": entries, "store": store, "sizes": vars(sizes)}
    note = f"; {entries:,} entries, {store} store, load from another process on the same cores; medians of {args.runs}"
    measured.finish(args, rows, told, note)
    return 0


def _line(row: dict[str, Any]) -> str:
    if row["measure"] == "memory":
        return (
            f"memory after {row['early']:,} requests {row['early_mib']:,.0f} MiB, after {row['requests']:,} "
            f"{row['late_mib']:,.0f} MiB"
        )
    ways = {"batched": "batched", "alone": "each alone", "bare": "bare encode + search, no server"}
    low, high = row["ratios"]
    lines = [f"{row['clients']} clients: batched is {row['ratio']:.2f}x each alone ({low:.2f} to {high:.2f})"]
    for way, name in ways.items():
        if f"{way}_rate" in row:
            p50, p95, p99 = (row[f"{way}_p{share}"] for share in (50, 95, 99))
            lines.append(
                f"  {name:32} {row[f'{way}_rate']:7.1f} a second, p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms"
            )
    return "\n".join(lines)
