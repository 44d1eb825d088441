"""`avse evaluate`: measure a model on a split."""

from __future__ import annotations

import argparse

from avse.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("model", help="a model folder, such as RUN/model of a run of avse train")
    parser.add_argument("data", help="folder with captions.jsonl or captions.csv")
    parser.add_argument("--split", default="test", help="train, val, test or all (default: test)")
    parser.add_argument("--root", help="the picture folder, where it is not beside the captions")
    parser.add_argument("--cache", help="folder of cached grids, for frozen encoders")
    parser.add_argument("--batch-size", type=common.positive_int, default=64, help="pictures or texts at a time")
    parser.add_argument(
        "--bootstrap", type=common.natural_int, default=1000, help="resamples for the interval (0: none)"
    )
    common.add_device(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table, or one JSON object."""
    from avse.data import load_dataset
    from avse.evaluate import evaluate
    from avse.inputs import open_inputs

    common.prepare_process()
    model = common.load_model(args.model, common.device_of(args))
    dataset = load_dataset(args.data, root=args.root, split=args.split)
    common.tell(dataset)
    inputs = open_inputs(model, dataset, cache=args.cache)
    common.tell_skips(inputs.images.skipped)
    report = evaluate(
        model,
        dataset,
        batch_size=args.batch_size,
        bootstrap=args.bootstrap,
        inputs=inputs,
        meta={"model": args.model},
    )
    if args.json:
        common.emit(report.to_dict())
    else:
        print(report.table())
    return 0
