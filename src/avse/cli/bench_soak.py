"""``avse bench soak``: an index used without a pause; memory, handles and disk must stay flat."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from avse.cli import common, measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--seconds", type=common.positive_int, default=600, help="how long (default: 600)")
    parser.add_argument("--model", metavar="DIR", help="a model's folder (default: EfficientNet-Lite0, random heads)")
    parser.add_argument("--store", default="embedded", choices=("embedded", "memory"), help="default: embedded")
    parser.add_argument("--threads", type=common.positive_int, default=1, help="of the model (default: 1)")
    measured.add_outputs(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print a line a tenth of the time, then the verdict; return 1 where something grew."""
    import torch

    from avse.benchmarks.soak import Turn, judge, soak

    measured.check_outputs(args)
    torch.set_num_threads(args.threads)
    turns: list[Turn] = []
    told = 0
    for turn in soak(args.seconds, model=args.model, store=args.store):
        turns.append(turn)
        if turn.seconds >= told * args.seconds / 10:
            told += 1
            common.emit(asdict(turn)) if args.json else print(_line(turn), flush=True)
    found = judge(turns)
    if args.json:
        common.emit(found)
    else:
        kinds = (("rss_mib", "memory"), ("disk_mib", "disk"))
        growth = ", ".join(
            f"{name} {found[key]['growth']:+.1%} ({found[key]['gained']:+.1f} MiB)" for key, name in kinds
        )
        print(
            f"{len(turns):,} turns; log at most {found['log_mib']['most']:.1f} MiB; over the last two thirds: "
            f"{growth}, handles at most {found['handles']['first']}, "
            f"then {found['handles']['last']}: {'flat' if found['flat'] else 'NOT flat'}"
        )
    every = 1 + len(turns) // 100  # of an hour's turns some hundred are kept
    measured.finish(args, [found, *map(asdict, turns[::every])], {"kept": f"the verdict, then every {every}. turn"})
    return 0 if found["flat"] else 1


def _line(turn: Any) -> str:
    return (
        f"{turn.seconds:6.0f} s: {turn.entries} entries, {turn.rss_mib:,.0f} MiB resident, {turn.handles} handles, "
        f"{turn.disk_mib:,.2f} MiB on the disk, the engine's log {turn.log_mib:,.1f}"
    )
