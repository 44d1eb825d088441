"""What the parts of `avse bench` share: files that are not replaced, targets, the machine's line."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from avse.cli import common


def add_outputs(parser: argparse.ArgumentParser) -> None:
    """Declare where the rows go."""
    parser.add_argument("--out-json", metavar="FILE.json", help="write the rows with the machine's line")
    common.add_force(parser)
    common.add_json(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured: the processor, unless a GPU is asked for."""
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="what computes (default: cpu)")


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse files that are there already, a plot that cannot be drawn, and a device that is not there."""
    from avse import files
    from avse.benchmarks import plot

    out = getattr(args, "out", None)
    for path in filter(None, (out, args.out_json)):
        files.check_target(path, args.force)
    if out:
        plot.check_plots()
    if getattr(args, "device", "cpu") != "cpu":
        common.device_of(args)


def finish(args: argparse.Namespace, rows: list[dict[str, Any]], told: dict[str, Any], note: str = "") -> str:
    """Print the machine's line, write the rows with it where they are wanted, and return it."""
    from avse import files
    from avse.benchmarks import machine

    host = machine(getattr(args, "device", None) or "cpu") | {"threads": args.threads}
    gpu = f"{host['gpu']}, " if "gpu" in host else ""
    line = (
        f"{gpu}{host['processor']}, {host['cores']} cores, {args.threads} used, torch {host['torch']}, {host['date']}"
    )
    if not args.json:
        print(line + note)
    if args.out_json:
        files.write_json(args.out_json, {"machine": host, "command": _command(args.given), **told, "rows": rows})
    return line


def _command(words: Sequence[str]) -> str:
    """Write the command that was given, but for where its output went."""
    kept = [w for w in words if w not in ("--json", "--force") and not w.startswith(("--out=", "--out-json="))]
    while found := [at for at, word in enumerate(kept) if word in ("--out", "--out-json")]:
        del kept[found[0] : found[0] + 2]
    return shlex.join(["avse", *kept])


def targets(row: dict[str, Any]) -> str:
    """Write what the issue wants of a row, a line each."""
    text = ""
    for target in row["targets"]:
        state = {True: "reached", False: "NOT reached", None: "not known here"}[target["reached"]]
        found = "" if target["found"] is None else f": {target['found']:.3g}"
        text += f"\n      target {target['wanted']}{found}, {state}"
    return text
