"""``avse data``: obtain, make and check pictures with captions."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from avse.cli import common

LISTED = 20
"""Lines of a kind that a report on the screen names; `--json` has all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the four kinds of work and their options."""
    count = common.positive_int
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="{openclipart,scenes,check,shards}")
    clip = kinds.add_parser("openclipart", help="real pictures with words from two Debian packages (156 MB)")
    clip.add_argument("--out", type=Path, default=Path("data/openclipart"), help="folder to make (%(default)s)")
    clip.add_argument("--size", type=count, default=256, help="side of the pictures in pixels (%(default)s)")
    clip.add_argument("--debs", type=Path, help="folder that holds openclipart-{svg,png}_*.deb: no network is used")
    scenes = kinds.add_parser("scenes", help="made pictures of several objects, a caption for each, boxes known")
    scenes.add_argument("--out", type=Path, required=True, help="folder to make")
    scenes.add_argument("--count", type=count, default=400, help="number of pictures (%(default)s)")
    scenes.add_argument("--seed", type=common.natural_int, default=0, help="same seed, same pictures (%(default)s)")
    scenes.add_argument("--size", type=count, default=224, help="side of the pictures in pixels (%(default)s)")
    check = kinds.add_parser("check", help="a data set's layout, counts, what is missing or twice, its protocols")
    check.add_argument("path", help="folder of a data set, a file that marks its layout, or flickr30k, coco, …-regions")
    check.add_argument("--root", type=Path, help="folder of the pictures; for a known name the folder that holds it")
    check.add_argument("--quick", action="store_true", help="look for the files alone: decode nothing, compare ids")
    shards = kinds.add_parser("shards", help="training pairs as webdataset shards to be streamed, val and test beside")
    shards.add_argument("path", help="a data set, as check takes it")
    shards.add_argument("--out", type=Path, required=True, help="folder to make; the same command goes on after a stop")
    shards.add_argument("--root", type=Path, help="as of check")
    shards.add_argument("--samples", type=count, default=1000, metavar="N", help="pictures a shard (%(default)s)")
    for kind in (clip, scenes, shards):
        common.add_force(kind)
    for kind in (clip, scenes, check, shards):
        common.add_json(kind)


def run(args: argparse.Namespace) -> int:
    """Do one kind of work and return 0, or 1 where ``check`` found the data unusable."""
    if args.kind == "openclipart":
        from avse.data.openclipart import build_openclipart

        _show(args, build_openclipart(args.out, size=args.size, debs=args.debs, force=args.force))
        return 0
    if args.kind == "scenes":
        from avse.data.scenes import make_scenes

        _show(args, make_scenes(args.out, count=args.count, size=args.size, seed=args.seed, force=args.force))
        return 0
    if args.kind == "shards":
        from avse.data.layouts import find_layout, load_splits
        from avse.data.sharding import write_shards

        splits = load_splits(find_layout(args.path, args.root))
        counts = write_shards(splits, args.out, samples_per_shard=args.samples, force=args.force)
        _show(args, counts)
        if not args.json:
            out = shlex.quote(str(args.out))
            print(f"train in {counts['shards']:,} shards, {counts['bytes']:,} bytes: stream them by")
            print(f"avse train {out}")
        return 0
    from avse.check import check_dataset

    report = check_dataset(args.path, root=args.root, quick=args.quick)
    if args.json:
        common.emit(report)
    else:
        _show_report(report)
    return 0 if report["ok"] else 1


def _show(args: argparse.Namespace, counts: dict[str, Any]) -> None:
    if args.json:
        common.emit({"out": str(args.out), **counts})
        return
    splits = ", ".join(f"{split} {count:,}" for split, count in counts["splits"].items())
    print(f"{args.out}: {counts['pictures']:,} pictures with {counts['captions']:,} captions ({splits})")
    if "captions_shared" in counts:
        print(f"{counts['captions_shared']:.1%} of the captions are those of another picture too")
    for reason, count in counts.get("skipped", {}).items():
        print(f"skipped {count:,}: {reason}")
    if counts.get("skipped"):
        print(f"each by name in {args.out / 'skipped.json'}")


def _show_report(report: dict[str, Any]) -> None:
    layout = report["layout"]
    print(f"layout: {layout['kind']}, by {layout['path']}{', of ' + layout['family'] if layout['family'] else ''}")
    for split, counts in report["splits"].items():
        print(f"{split}: {counts['images']:,} images, {counts['captions']:,} captions")
    kinds = {"notes": "note", "skipped": "skipped", "duplicates": "in two splits", "problems": "problem"}
    for key, what in kinds.items():
        for item in report[key][:LISTED]:
            text = item if isinstance(item, str) else f"{item['name']}: {item['reason']}"
            print(f"{what}: {text}")
        if len(report[key]) > LISTED:
            print(f"{what}: {len(report[key]):,} in all; --json lists every one")
    for name, said in report["protocols"].items():
        print(f"protocol {name}: {'yes' if said['runs'] else 'no, ' + said['why']}")
    twice = len(report["duplicates"])
    flatters = f", but {twice:,} stand in two splits, which flatters the figures" if twice else ""
    print(f"usable{flatters}" if report["ok"] else "not usable as it is")
