"""What the parts of `avse bench` share: files that are not replaced, targets, the machine's line."""

from __future__ import annotations

import argparse
from typing import Any

from avse.cli import common


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Declare where the rows go."""
    parser.add_argument("--out-json", metavar="FILE.json", help="write the rows with the machine's line")
    common.add_force(parser)
    common.add_json(parser)


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse files that are there already, and a plot that cannot be drawn."""
    from avse import files
    from avse.benchmarks import plot

    out = getattr(args, "out", None)
    for path in filter(None, (out, args.out_json)):
        files.check_target(path, args.force)
    if out:
        plot.check_plots()


def finish(args: argparse.Namespace, rows: list[dict[str, Any]], told: dict[str, Any], note: str = "") -> str:
    """Print the machine's line, write the rows with it where they are wanted, and return it."""
    from avse import files
    from avse.benchmarks import machine

    host = machine() | {"threads": args.threads}
    line = f"{host['processor']}, {host['cores']} cores, {args.threads} used, torch {host['torch']}, {host['date']}"
    if not args.json:
        print(line + note)
    if args.out_json:
        files.write_json(args.out_json, {"machine": host, **told, "rows": rows})
    return line


def targets(row: dict[str, Any]) -> str:
    """Write what the issue wants of a row, a line each."""
    text = ""
    for target in row["targets"]:
        state = {True: "reached", False: "NOT reached", None: "not known here"}[target["reached"]]
        found = "" if target["found"] is None else f": {target['found']:.3g}"
        text += f"\n      target {target['wanted']}{found}, {state}"
    return text
