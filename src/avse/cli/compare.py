"""`avse compare`: a paired test of two systems from their kept rankings."""

from __future__ import annotations

import argparse
from typing import Any

from avse.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("first", metavar="A", help="a file of avse evaluate --save-rankings")
    parser.add_argument("second", metavar="B", help="another, on the same pairs")
    parser.add_argument(
        "--resamples", type=common.positive_int, default=1000, help="of the bootstrap over images (default: 1000)"
    )
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print both systems' figures and their differences, or one JSON object a protocol."""
    from avse.rankings import compare, load_rankings

    files = [load_rankings(path) for path in (args.first, args.second)]
    names = [args.first, args.second]
    for protocol, both in compare(files[0], files[1], resamples=args.resamples).items():
        if args.json:
            models = {"first": files[0].meta.get("model"), "second": files[1].meta.get("model")}
            common.emit({"protocol": protocol, "first": names[0], "second": names[1], "models": models, **both})
            continue
        print(
            f"{protocol}: A = {names[0]} ({files[0].meta.get('model')}), B = {names[1]} ({files[1].meta.get('model')})"
        )
        for matches, found in both.items():
            print(_table(matches.replace("_", "-"), found))
    return 0


def _table(title: str, found: dict[str, Any]) -> str:
    lines = [f"  {title:16}       A       B    A - B   95 % interval       p"]
    for name, difference in found["difference"].items():
        side, _, recall = name.partition("_")
        a, b = (
            found[system]["rsum"] if name == "rsum" else found[system][side][recall] for system in ("first", "second")
        )
        label = "rSum" if name == "rsum" else f"{side} {recall.replace('r', 'R@')}"
        low, high = difference["ci"]
        lines.append(
            f"  {label:16}{a:8.1f}{b:8.1f}{difference['mean']:+9.2f}   {low:+7.2f} {high:+7.2f}  {difference['p']:7.4f}"
        )
    for side, counts in found["better"].items():
        lines.append(
            f"  {side}: A ranks the match higher for {counts['first']} queries, B for {counts['second']}, "
            f"equal for {counts['equal']}"
        )
    return "\n".join(lines)
