"""`avse runs`: the trainings in a folder as one table."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from avse.cli import common

SHARED = ("data", "pictures", "objective", "batch", "lr", "seed", "precision", "device")
"""Columns that are told once, above the table, where all runs agree."""
FURTHER = ("images", "texts", "init from", "started", "avse", "torch", "processor", "aware rSum", "problem")
"""Columns of --full and --json."""
SORTS = {
    "rsum": ("val rSum", True),
    "started": ("started", True),
    "minutes": ("minutes", True),
    "name": ("name", False),
}
SILENT = 5
"""Minutes beyond three times the longest between two checkpoints after which a running run may be dead."""
_LEFT_OUT = {"model", "checkpoint", "checkpoints", "cache", "__pycache__"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "folders", nargs="*", metavar="FOLDER", default=["runs"], help="look in and below these (default: runs)"
    )
    parser.add_argument(
        "--sort", choices=sorted(SORTS), default="rsum", help="order of the rows: best, newest, longest or a to z first"
    )
    parser.add_argument("--full", action="store_true", help="every column, also where all runs agree")
    parser.add_argument("--diff", action="store_true", help="in place of the columns: all settings that differ")
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a row a run, or one JSON object a run."""
    from avse.trainer.record import read_run

    found = [(name, {**read_run(folder), "folder": folder}) for name, folder in _find(args.folders)]
    if not found:
        raise ValueError(f"no run in or below {', '.join(args.folders)}: avse train --out FOLDER makes one")
    rows = [row_of(name, values) for name, values in found]
    settings = [flat(values["identity"]) for _, values in found]
    column, down = SORTS[args.sort]
    known = [i for i, row in enumerate(rows) if row[column] is not None]
    order = sorted(known, key=lambda i: rows[i][column], reverse=down)
    order += [i for i in range(len(rows)) if i not in set(known)]
    rows, settings = [rows[i] for i in order], [settings[i] for i in order]
    differing = sorted({key for s in settings for key in s if any(s.get(key) != t.get(key) for t in settings)})
    if args.json:
        for row, values in zip(rows, settings):
            common.emit({**row, "settings": {key: values.get(key) for key in differing} if args.diff else values})
        return 0
    print("figures are of the validation split, percent; epochs count from 1")
    if len({s.get("val") for s in settings}) > 1:
        print("runs of different validation pairs cannot be compared by their figures: see the column data")
    if args.diff:
        heads, kept = ["name", "val rSum"], differing
        table = [[*(row[head] for head in heads), *(s.get(key) for key in kept)] for row, s in zip(rows, settings)]
        _print([*heads, *kept], table)
    else:
        heads = _told_once(rows, list(rows[0]) if args.full else [h for h in rows[0] if h not in FURTHER], args.full)
        _print(heads, [[row[head] for head in heads] for row in rows])
    for row in rows:
        if row["problem"]:
            print(f"avse runs: {row['name']}: {row['problem']}", file=sys.stderr)
    return 0


def row_of(name: str, run: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of a run as `read_run` gives it; None where nothing is known."""
    identity = run["identity"]
    config, model = identity.get("config") or {}, identity.get("model") or {}
    best, seconds, versions = run["best"] or {}, run["seconds"], run.get("versions") or {}
    spent = sum(value for part, value in seconds.items() if part != "wait")  # waiting is a part of the training
    data = run.get("data") or {}
    done = None if run["last_epoch"] is None else run["last_epoch"] + 1
    return {
        "name": name,
        "status": _status(run),
        "epochs": f"{done or 0}/{config.get('epochs', '?')}",
        "best epoch": None if run["best_epoch"] is None else run["best_epoch"] + 1,
        "val rSum": best.get("rsum"),
        "i2t R@1": (best.get("i2t") or {}).get("r1"),
        "t2i R@1": (best.get("t2i") or {}).get("r1"),
        "objective": config.get("objective"),
        "batch": config.get("batch_size"),
        "lr": config.get("lr"),
        "seed": config.get("seed"),
        "precision": config.get("precision"),
        "data": data.get("name") and f"{data.get('name')}, {(data.get('val') or {}).get('images')} val",
        "pictures": (data.get("train") or {}).get("images"),
        "minutes": round(spent / 60, 2) if seconds else None,
        "device": _device(run),
        "images": (model.get("image_encoder") or {}).get("source"),
        "texts": (model.get("text_encoder") or {}).get("source"),
        "init from": identity.get("init_from"),
        "started": run.get("started"),
        "avse": versions.get("avse"),
        "torch": versions.get("torch"),
        "processor": (run.get("hardware") or {}).get("processor"),
        "aware rSum": best.get("duplicate_aware_rsum"),
        "problem": run.get("error") or run["problem"],
    }


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested settings by dotted names.

    >>> flat({"config": {"lr": 0.1}, "seed": [1]})
    {'config.lr': 0.1, 'seed': [1]}
    """
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return out


def _find(folders: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yield name and folder of each run, by name; what lies in a run is none, but an ensemble's members are."""
    from avse.trainer.record import is_run

    for top in folders:
        if not Path(top).is_dir():
            raise FileNotFoundError(f"no folder {top!r}")
        for here, below, _ in os.walk(top):
            folder = Path(here)
            if is_run(folder):
                below.clear()
                name = folder.relative_to(top).as_posix() if len(folders) == 1 else folder.as_posix()
                yield (folder.resolve().name if name == "." else name), folder
            below[:] = sorted(name for name in below if name not in _LEFT_OUT and not name.startswith("."))


def _status(run: dict[str, Any]) -> str:
    """Say how a run is; doubt one that has not been heard of for longer than it can be silent, and say since when."""
    if run["status"] != "running" or not run.get("updated"):
        return str(run["status"])
    from avse.lock import is_locked
    from avse.trainer.record import CHECKPOINTS

    if run.get("host") == platform.node() and not is_locked(run["folder"] / CHECKPOINTS):
        return "killed"
    silent = (datetime.now(timezone.utc) - datetime.fromisoformat(run["updated"])).total_seconds() / 60
    if silent <= 3 * run.get("checkpoint_minutes", 10) + SILENT:
        return "running"
    age = f"{silent:.0f} min" if silent < 120 else f"{silent / 60:.0f} h" if silent < 2880 else f"{silent / 1440:.0f} d"
    return f"running? silent for {age}"


def _device(run: dict[str, Any]) -> str | None:
    """Name the GPU where one was used, and how many processes there were where it was not one."""
    device, hardware = run.get("device"), run.get("hardware") or {}
    gpus = [gpu["name"] for gpu in hardware.get("gpus", [])]
    name = gpus[0] if gpus and str(device).startswith("cuda") else device
    processes = run.get("processes") or 1
    return f"{processes} x {name}" if name and processes > 1 else name


def _told_once(rows: list[dict[str, Any]], heads: list[str], full: bool) -> list[str]:
    """Say what all runs share in a line above; return the columns that are left."""
    if len(rows) == 1 or full:
        return heads
    same = [head for head in SHARED if head in heads and all(row[head] == rows[0][head] for row in rows)]
    told = [f"{head} {_shown(head, rows[0][head])}" for head in same if rows[0][head] is not None]
    if told:
        print(f"all {len(rows)} runs: {', '.join(told)}")
    return [head for head in heads if head not in same]


def _print(heads: list[str], rows: list[list[Any]]) -> None:
    table = [heads, *([_shown(head, value) for head, value in zip(heads, row)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    numbers = [all(isinstance(v, (int, float, type(None))) for v in column) for column in zip(*rows)]
    for line in table:
        cells = (c.rjust(w) if number else c.ljust(w) for c, w, number in zip(line, widths, numbers))
        print("  ".join(cells).rstrip())


def _shown(head: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float) and head in ("val rSum", "i2t R@1", "t2i R@1", "aware rSum", "minutes"):
        return f"{value:.1f}"
    if isinstance(value, str) and len(value) == 64 and " " not in value:
        return f"{value[:8]}…"  # a digest
    return f"{value:g}" if isinstance(value, float) else str(value)
