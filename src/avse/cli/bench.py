"""`avse bench`: measure speed on this machine, interleaved, medians, one thread unless said."""

from __future__ import annotations

import argparse
from typing import Any

from avse.cli import common

KINDS = {
    "scoring": "the score matrix against einsum and max (what `avse bench` alone measures)",
    "matching": "a pair of cosine, AEOM and SCAN's cross-attention; growth of AEOM in C, D and the gallery",
    "evaluate": "the whole of an evaluation on random embeddings of COCO 5K's size: seconds and peak memory",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; those of `scoring` also stand without its name."""
    _scoring_arguments(parser)
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", help=", ".join(KINDS))
    for name, text in KINDS.items():
        sub = kinds.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        _ARGUMENTS[name](sub)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    common.prepare_process()
    return _RUNS[args.what or "scoring"](args)


def _scoring_arguments(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Add the options of `scoring`; `again`: below its name, where the ones before it keep their values."""

    def add(name: str, value: Any, kind: Any, text: str, **more: Any) -> None:
        default = argparse.SUPPRESS if again else value
        parser.add_argument(name, type=kind, default=default, help=text, **more)

    count = common.positive_int
    add("--images", 1000, count, "pictures (default: 1000)")
    add("--texts", 5000, count, "texts (default: 5000)")
    add("--shape", (8, 4, 256), _shape, "default: 8,4,256", metavar="P,Q,C")
    add("--runs", 7, count, "timed runs of each way (default: 7)")
    add("--threads", 1, count, "threads (default: 1)")
    parser.add_argument(
        "--json",
        action="store_true",
        default=argparse.SUPPRESS if again else False,
        help="one JSON object a line on stdout",
    )


def _matching_arguments(parser: argparse.ArgumentParser) -> None:
    count = common.positive_int
    parser.add_argument("--images", type=count, default=256, help="pictures of a matrix (default: 256)")
    parser.add_argument("--texts", type=count, default=1280, help="texts of a matrix (default: 1280)")
    parser.add_argument("--runs", type=count, default=7, help="timed turns (default: 7)")
    parser.add_argument("--threads", type=count, default=1, help="threads (default: 1)")
    parser.add_argument("--out", metavar="FILE.png", help="draw the figures (extra `plots`)")
    parser.add_argument("--out-json", metavar="FILE.json", help="write the rows with the machine's line")
    common.add_force(parser)
    common.add_json(parser)


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    count = common.positive_int
    parser.add_argument("--images", type=count, default=5000, help="pictures, a multiple of 5 (default: 5000)")
    parser.add_argument("--captions", type=count, default=5, help="captions a picture (default: 5)")
    parser.add_argument("--shape", type=_shape, default=(8, 4, 256), metavar="P,Q,C", help="default: 8,4,256")
    parser.add_argument("--bootstrap", type=count, default=1000, help="resamples for the intervals (default: 1000)")
    parser.add_argument("--threads", type=count, default=2, help="threads (default: 2)")
    common.add_json(parser)


def _shape(text: str) -> tuple[int, int, int]:
    parts = text.split(",")
    if len(parts) != 3:
        raise argparse.ArgumentTypeError(f"{text}: three numbers P,Q,C are wanted")
    blocks, queries, width = map(common.positive_int, parts)
    return blocks, queries, width


def _scoring(args: argparse.Namespace) -> int:
    from avse.benchmarks.scoring import measure_scoring

    for row in measure_scoring(args.images, args.texts, args.shape, runs=args.runs, threads=args.threads):
        if args.json:
            common.emit(row)
        else:
            print(
                f"{row['way']:36} {row['seconds']:8.3f} s  {row['gflops']:7.1f} GFLOP/s  "
                f"{row['ratio']:5.2f}x the einsum way"
            )
    return 0


def _matching(args: argparse.Namespace) -> int:
    from pathlib import Path

    from avse import files
    from avse.benchmarks import machine, plot
    from avse.benchmarks.matching import Sizes, measure_matching

    for path in filter(None, (args.out, args.out_json)):
        if Path(path).exists() and not args.force:
            raise FileExistsError(f"{path} exists; pass --force to replace it")
    if args.out:
        plot.check_plots()
    sizes = Sizes(
        images=args.images,
        texts=args.texts,
        scan_batch=(min(64, args.images), min(16, args.texts)),
        gallery=(4 * args.images, 8 * args.images, 16 * args.images, 32 * args.images),
        queries=min(64, args.texts),
    )
    rows = measure_matching(sizes, runs=args.runs, threads=args.threads)
    host = machine()
    for row in rows:
        common.emit(row) if args.json else print(_matching_line(row))
    line = f"{host['processor']}, {host['cores']} cores, {args.threads} used, torch {host['torch']}, {host['date']}"
    if not args.json:
        print(f"{line}; medians of {args.runs}")
    if args.out_json:
        told = " ".join(f"--{name} {getattr(args, name)}" for name in ("images", "texts", "runs", "threads"))
        values = {"machine": host, "command": f"avse bench matching {told}", "sizes": vars(sizes), "rows": rows}
        files.write_json(args.out_json, values)
    if args.out:
        plot.draw_matching(rows, Path(args.out), line)
    return 0


def _matching_line(row: dict[str, Any]) -> str:
    if row["measure"] == "pair":
        return (
            f"{row['way']:28} {row['us_per_pair']:10.3f} µs a pair  {row['against_aeom']:8.2f}x AEOM  "
            f"{row['against_cosine']:8.2f}x the cosine"
        )
    unit = "a query" if row["over"] == "gallery" else "a pair"
    points = "  ".join(f"{size:,}: {value:,.3g}" for size, value in row["points"])
    return (
        f"growth in {row['over']} at {row['at']}: exponent {row['exponent']:.2f}: {row['why']}\n    µs {unit}: {points}"
    )


def _evaluate(args: argparse.Namespace) -> int:
    from avse.benchmarks.evaluation import measure_evaluation

    row = measure_evaluation(args.images, args.captions, args.shape, resamples=args.bootstrap, threads=args.threads)
    if args.json:
        common.emit(row)
        return 0
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in row["parts"].items())
    print(
        f"{row['images']:,} x {row['captions']:,} at P,Q,C = {','.join(map(str, row['shape']))}, plain and five folds, "
        f"both duplicate-aware too, {row['resamples']:,} resamples each, {row['threads']} threads: "
        f"{row['seconds']:.1f} s ({parts}), peak {row['peak_mib']:,} MiB"
    )
    return 0


def _again(parser: argparse.ArgumentParser) -> None:
    _scoring_arguments(parser, again=True)


_ARGUMENTS = {"scoring": _again, "matching": _matching_arguments, "evaluate": _evaluate_arguments}
_RUNS = {"scoring": _scoring, "matching": _matching, "evaluate": _evaluate}
