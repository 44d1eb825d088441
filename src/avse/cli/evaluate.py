"""`avse evaluate`: measure models, or an ensemble of them, on a split."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from avse.cli import common

if TYPE_CHECKING:
    from avse.calibration import Calibration
    from avse.data import PairDataset
    from avse.inputs import Inputs
    from avse.metrics import RetrievalReport
    from avse.model import AVSE
    from avse.protocols import Scored


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    from avse.protocols import PROTOCOLS

    told = "; ".join(f"{name}: {text}" for name, text in PROTOCOLS.items())
    parser.add_argument(
        "model",
        nargs="+",
        metavar="MODEL",
        help="a model folder, such as RUN/model of a run of avse train; several are measured in turn. All of MODEL ... "
        "DATA stand together, options before or after them",
    )
    parser.add_argument("data", metavar="DATA", help=common.DATA)
    parser.add_argument("--split", default="test", help="train, val, test or all (default: test)")
    parser.add_argument("--root", help="the picture folder, where it is not beside the captions")
    parser.add_argument(
        "--protocol",
        action="append",
        choices=PROTOCOLS,
        help=f"{told}. May be repeated (default: coco-5k and coco-1k on COCO's test images with their ids, else plain)",
    )
    parser.add_argument(
        "--calibrate",
        action="store_true",
        help="learn from these scores which answers of a search are weak, and keep it in the model's folder; wants a "
        "validation split (--split val)",
    )
    parser.add_argument(
        "--false-accepts",
        type=_share,
        metavar="SHARE",
        help="with --calibrate: of questions without an answer, the share whose best hit may pass (default: 0.05)",
    )
    parser.add_argument("--ensemble", action="store_true", help="measure the mean of the models' scores as one system")
    parser.add_argument(
        "--save-rankings", metavar="FILE", help="keep ranks and first hits as .npz or .parquet, for avse compare"
    )
    parser.add_argument(
        "--report",
        metavar="FILE",
        help="write a page of HTML: figures, ranks, failures with their pictures, near-misses explained, calibration",
    )
    parser.add_argument(
        "--top", type=common.positive_int, default=100, help="hits of a query that are kept (default: 100)"
    )
    parser.add_argument("--cache", help="folder of cached grids, for frozen encoders")
    parser.add_argument("--batch-size", type=common.positive_int, default=64, help="pictures or texts at a time")
    parser.add_argument(
        "--bootstrap", type=common.natural_int, default=1000, help="resamples for the intervals (0: none)"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "auto"),
        default="fp32",
        help="of the encoders: bf16 is some twice as fast where the processor or GPU has it (default: fp32)",
    )
    common.add_device(parser)
    common.add_force(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a table, or one JSON object, a system and protocol."""
    from tqdm import tqdm

    from avse import files
    from avse.checkpoint import check_calibration_target
    from avse.data import load_dataset
    from avse.evaluate import score
    from avse.protocols import fitting_protocols, prepare
    from avse.rankings import check_target

    if args.ensemble and len(args.model) < 2:
        raise ValueError("--ensemble averages the scores of several models: name two or more before the data")
    if args.save_rankings:
        if len(args.model) > 1 and not args.ensemble:
            raise ValueError("--save-rankings keeps one system: name one model, or --ensemble")
        check_target(args.save_rankings, args.force)
    if args.report:
        if len(args.model) > 1:
            raise ValueError("--report explains the answers of one model: name one, and a page for each of the others")
        files.check_target(args.report, args.force)
    _check_calibrate(args)
    common.prepare_process()
    device = common.device_of(args)
    members = _members(args.model, device)
    first = next(members)  # a folder that is no model is told before anything is read
    for folder in args.model if args.calibrate else ():
        check_calibration_target(folder, args.force)
    dataset = load_dataset(args.data, root=args.root, split=args.split)
    common.tell(dataset)
    protocols = list(dict.fromkeys(args.protocol or fitting_protocols(dataset)))
    opened = _opened(first, members, prepare(protocols, dataset), args.cache, protocols)
    for part in [opened] if args.ensemble else ([member] for member in opened):
        with tqdm(desc="embedding", unit="item", disable=None) as bar:
            scored = score(part, args.batch_size, precision=args.precision, tick=bar.update)
        reports = _report(args, scored, protocols)
        learnt = _calibrate(args, scored) if args.calibrate else None
        if args.report:
            from avse import report

            model, inputs, _ = next(iter(part))
            model.calibration = learnt or model.calibration
            path = report.write_report(args.report, model, inputs, scored, reports, force=args.force)
            print(f"report in {path}", file=sys.stderr)
    return 0


def _members(folders: Sequence[str], device: str) -> Iterator[tuple[AVSE, str]]:
    """Load one model after the other."""
    for folder in folders:
        yield common.load_model(folder, device), folder


def _opened(
    first: tuple[AVSE, str],
    others: Iterator[tuple[AVSE, str]],
    dataset: PairDataset,
    cache: str | None,
    protocols: Sequence[str],
) -> Iterator[tuple[AVSE, Inputs, dict[str, Any]]]:
    """Open the split for each model."""
    from itertools import chain

    from avse.inputs import open_inputs
    from avse.protocols import prepare

    for model, folder in chain([first], others):
        inputs = open_inputs(model, dataset, cache=cache)
        if model is first[0]:
            common.tell_skips(inputs.images.skipped)
        prepare(protocols, inputs.dataset)  # a picture that cannot be decoded is told before anything is encoded
        yield model, inputs, {"model": folder}


def _report(args: argparse.Namespace, scored: Scored, protocols: Sequence[str]) -> dict[str, RetrievalReport]:
    """Measure by every protocol, print, and keep the rankings."""
    from avse.protocols import measure
    from avse.rankings import rankings_of, save_rankings

    reports = {name: measure(scored, name, bootstrap=args.bootstrap) for name in protocols}
    for report in reports.values():
        if args.json:
            common.emit(report.to_dict())
        else:
            print(report.table())
    if args.save_rankings:
        ranked = {"coco-5k" if name == "eccv" else name: report for name, report in reports.items()}
        path = save_rankings(rankings_of(scored, ranked, args.top), args.save_rankings, force=args.force)
        print(f"rankings in {path}", file=sys.stderr)
    return reports


_NO_VALIDATION = {
    "test": "what is learnt from the test split cannot be measured on it",
    "testall": "what is learnt from the test split cannot be measured on it",
    "train": "a model scores what it was trained on too well",
    "all": "it holds the test split",
}


def _share(text: str) -> float:
    number = common.positive_number(text)
    if number > 0.5:
        raise argparse.ArgumentTypeError(f"{text}: a share above 0 and up to 0.5 is wanted, such as 0.05")
    return number


def _check_calibrate(args: argparse.Namespace) -> None:
    """Refuse what cannot calibrate before anything is read."""
    if not args.calibrate:
        if args.false_accepts is not None:
            raise common.MisuseError("--false-accepts goes with --calibrate")
        return
    if args.ensemble:
        raise common.MisuseError("--calibrate learns for one model's scores, which an index has: leave --ensemble out")
    if args.precision != "fp32":
        raise common.MisuseError("--calibrate learns from scores as searches have them: leave --precision out")
    if why := _NO_VALIDATION.get(args.split):
        raise common.MisuseError(f"--calibrate on split {args.split}: {why}; give --split val")


def _calibrate(args: argparse.Namespace, scored: Scored) -> Calibration:
    """Keep in the model's folder which answers are weak, and say it."""
    from avse.calibration import FALSE_ACCEPTS
    from avse.checkpoint import keep_calibration
    from avse.protocols import calibration_of

    folder, share = scored.meta["model"], args.false_accepts or FALSE_ACCEPTS
    learnt = calibration_of(scored, share)
    keep_calibration(folder, learnt.to_dict(), force=args.force)
    size = learnt.t2i.sizes[-1]
    print(
        f"calibrated {folder}: among {size} pictures an answer below {learnt.threshold(size):.3f} is weak; "
        f"{share:.2g} of sentences without an answer pass, {learnt.t2i.recall:.2g} of true pairs",
        file=sys.stderr,
    )
    return learnt
