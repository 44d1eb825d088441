"""`avse bench weak`: the weak flag."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from avse.cli import common, measured


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--model", default="runs/demo/model", metavar="DIR", help="a trained model's folder (default: %(default)s)"
    )
    parser.add_argument(
        "--data", default="data/openclipart", help=f"what it was trained on; {common.DATA} (default: %(default)s)"
    )
    parser.add_argument("--root", help="the picture folder, where it is not beside the captions")
    parser.add_argument("--questions", type=common.positive_int, default=300, help="without an answer (default: 300)")
    parser.add_argument(
        "--pictures", type=common.positive_int, default=3000, help="training pictures to begin with (default: 3000)"
    )
    parser.add_argument("--cache", help="folder of cached grids (default: cache/ beside the model, else .cache/avse)")
    parser.add_argument("--out-json", metavar="FILE.json", help="write the row with the machine's line")
    common.add_device(parser)
    common.add_force(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    import torch

    from avse.benchmarks.weak import measure_weak

    measured.check_outputs(args)
    model = common.load_model(args.model, common.device_of(args))
    beside = Path(args.model).parent / "cache"
    cache = args.cache or (beside if beside.is_dir() else common.CACHE)
    row = measure_weak(model, args.data, root=args.root, wanted=args.questions, most=args.pictures, cache=cache)
    if args.json:
        common.emit(row)
    else:
        print("\n".join(_lines(row)))
    args.threads = torch.get_num_threads()
    measured.finish(args, [row], {})
    return 0


def _lines(row: dict[str, Any]) -> list[str]:
    from avse.benchmarks.weak import WANTED

    share, index, test = row["false_accepts"], row["index"], row["test"]
    low, high = index["interval"]
    target = ""
    if share == 0.05:
        reached = "reached" if WANTED[0] <= index["rate"] <= WANTED[1] else "NOT reached"
        target = f"; to reach: {WANTED[0]:.0%} to {WANTED[1]:.0%}, {reached}"
    lines = [
        f"{row['dataset']}: calibration {row['calibration']}, {share:.1%} false accepts, from {row['learnt_from']} "
        f"texts and {row['learnt_at']} clear non-answers each",
        f"{row['questions']} test texts that share no content word with any caption of {row['indexed']} of the "
        f"{row['training_pictures']} training pictures, which are the index",
        f"first answers that are not called weak: {index['passed']} of {row['questions']}, {index['rate']:.1%} "
        f"(95 %: {low:.1%} to {high:.1%}){target}",
        "  gallery  threshold  false accepts  without adjustment  true pairs kept",
    ]
    lines += [
        f"{part['gallery']:9,}  {part['threshold']:9.3f}  {part['rate']:13.1%}  {part['unadjusted']:18.1%}  "
        f"{part['recall']:15.1%}"
        for part in row["sizes"]
    ]
    related, every, passed = row["related"], test["all"], test["accepted"]
    lines.append(
        f"all test texts against all {related['gallery']:,} training pictures, which may well answer: "
        f"{related['rate']:.1%} pass"
    )
    among = f"R@1 {passed['r1']:.1%}, R@10 {passed['r10']:.1%} of these" if passed["r1"] is not None else "none of them"
    lines.append(
        f"the {test['texts']} test texts among the {test['gallery']} test pictures: {test['passing']:.1%} pass, "
        f"{among}; R@1 {every['r1']:.1%}, R@10 {every['r10']:.1%} of all"
    )
    return lines
