"""`avse ablate`: the paper's ablations on your data, as one table with intervals."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from avse.cli import common

GROUPS = ("parts", "sampling", "views", "block width", "keep rate", "alpha", "L_reg weight", "objective")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("data", help=common.DATA)
    parser.add_argument(
        "--out", default="runs/ablation", help="folder of the results; finished rows are kept (%(default)s)"
    )
    parser.add_argument("--seeds", type=common.positive_int, default=3, help="trainings a row (default: 3)")
    common.add_recipe(parser)
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--only", action="append", choices=GROUPS, metavar="GROUP", help=f"one of the paper's: {', '.join(GROUPS)}"
    )
    rows.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="KEY=A,B,C",
        help="instead of the paper's rows, a row for each value, such as train.decorrelation_weight=0.1,1,10",
    )
    parser.add_argument("--root", help="the picture folder, where it is not beside the captions")
    parser.add_argument("--cache", help="folder of the cached grids (default: .cache/avse)")
    common.add_device(parser)
    common.add_force(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train what is not there yet and print the table, or the JSON object that ablation.json holds."""
    import torch

    from avse.ablate import paper_variants, run_ablation, table_lines, variants_over
    from avse.config import change, load_recipe
    from avse.data import load_dataset
    from avse.inputs import can_cache, open_inputs, reads_regions
    from avse.model import AVSE

    common.prepare_process()
    recipe = load_recipe(args.config or "ablation", args.set, args.preset)
    if recipe.init_from or recipe.ensemble > 1:
        raise ValueError("ablations train single models from the start: leave init_from and ensemble out of the recipe")
    root, cache = args.root or recipe.data.root, args.cache or recipe.data.cache or common.CACHE
    variants = variants_over(args.over) if args.over else paper_variants(recipe)
    if args.only:
        variants = [variant for variant in variants if variant.group in args.only]
    torch.manual_seed(recipe.train.seed)
    device = common.device_of(args)
    trained = recipe.model.text_encoder.source == "bigru"  # else its features are shared by the rows that freeze it
    shared = recipe if trained else change(recipe, ["model.text_encoder.frozen=true"])
    model = AVSE(shared.model).to(device)
    if not can_cache(model, recipe.train.image_augment) and not reads_regions(model):
        raise ValueError(
            "ablations run on cached grids: set model.image_encoder.frozen to true and its sampling_stage to 'output', "
            "and train.image_augment to false"
        )
    parts = {split: load_dataset(args.data, root=root, split=split) for split in ("train", "val", "test")}
    for split, most in (("train", recipe.data.max_train_images), ("val", recipe.data.max_val_images)):
        parts[split] = parts[split].first_by_hash(most) if most else parts[split]
    parts["train"], _ = common.without_leaks(recipe, parts["train"], {name: parts[name] for name in ("val", "test")})
    splits = {}
    for split, part in parts.items():
        common.tell(part)
        splits[split] = open_inputs(model, part, cache=cache)
        common.tell_skips(splits[split].images.skipped)
    encoders = (model.image_encoder, model.text_encoder)
    print(f"{len(variants) + 1} rows x {args.seeds} trainings", file=sys.stderr)
    table = run_ablation(recipe, variants, encoders, splits, Path(args.out), args.seeds, device, args.force)
    if args.json:
        common.emit(table)
    else:
        print("\n".join(table_lines(table)))
    return 0
