"""`avse evaluate`: measure models, or an ensemble of them, on a split."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from avse.cli import common

if TYPE_CHECKING:
    from avse.data import PairDataset
    from avse.inputs import Inputs
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
    parser.add_argument("--ensemble", action="store_true", help="measure the mean of the models' scores as one system")
    parser.add_argument(
        "--save-rankings", metavar="FILE", help="keep ranks and first hits as .npz or .parquet, for avse compare"
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
    common.prepare_process()
    device = common.device_of(args)
    members = _members(args.model, device)
    first = next(members)  # a folder that is no model is told before anything is read
    dataset = load_dataset(args.data, root=args.root, split=args.split)
    common.tell(dataset)
    protocols = list(dict.fromkeys(args.protocol or fitting_protocols(dataset)))
    opened = _opened(first, members, prepare(protocols, dataset), args.cache, protocols)
    for part in [opened] if args.ensemble else ([member] for member in opened):
        with tqdm(desc="embedding", unit="item", disable=None) as bar:
            scored = score(part, args.batch_size, precision=args.precision, tick=bar.update)
        _report(args, scored, protocols)
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


def _report(args: argparse.Namespace, scored: Scored, protocols: Sequence[str]) -> None:
    """Measure by every protocol, print, and keep the rankings."""
    import sys

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
