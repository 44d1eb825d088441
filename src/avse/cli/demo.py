"""`avse demo`: the main job on real pictures."""

from __future__ import annotations

import argparse

from avse.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--out", default="runs/demo", help="folder of the results (default: runs/demo)")
    parser.add_argument("--data", default="data", help="folder that holds or gets the pictures (default: data)")
    parser.add_argument("--seeds", type=common.positive_int, default=1, help="trainings of each system (default: 1)")
    parser.add_argument("--scenes", action="store_true", help="made scenes instead of open clip art")
    parser.add_argument("--epochs", type=common.positive_int, help="another number of epochs than the recipes'")
    parser.add_argument(
        "--max-train-images", type=common.positive_int, default=3000, help="at most so many training pictures"
    )
    common.add_device(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its table and what to try next."""
    import shutil
    import sys
    from pathlib import Path

    from avse.demo import run_demo
    from avse.demo.report import next_commands, table

    common.prepare_process()
    out, data = Path(args.out), Path(args.data)
    report = run_demo(
        out,
        data,
        seeds=args.seeds,
        scenes=args.scenes,
        epochs=args.epochs,
        max_train_images=args.max_train_images,
        device=common.device_of(args),
    )
    if args.json:
        common.emit(report)
        return 0
    print(table(report))
    print(f"\nreport with pictures: {out / 'report.html'}\ntry next:")
    if shutil.which("avse") is None:
        print(f"  . {Path(sys.executable).parent / 'activate'}")
    for command in next_commands(out, Path(report["data"])):
        print(f"  {command}")
    return 0
