"""`avse train`: train a model on pairs of pictures and captions."""

from __future__ import annotations

import argparse

from avse.cli import common


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("data", nargs="?", help="folder with captions.jsonl or captions.csv (default: data.source)")
    parser.add_argument(
        "--out", required=True, help="folder for model/, checkpoint/, history.json, curves.png, run.json"
    )
    common.add_recipe(parser)
    parser.add_argument("--preset", help="change the recipe into a preset: avse, official, vse_infinity, …")
    parser.add_argument("--root", help="the picture folder, where it is not beside the captions")
    parser.add_argument(
        "--cache", help="folder for the grids of a frozen encoder (default: data.cache, else .cache/avse)"
    )
    parser.add_argument("--seed", type=int, help="seed of heads, batches and views (default: train.seed)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    common.add_device(parser)
    common.add_force(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train, keep the best epoch by validation rSum, and say where it lies."""
    from pathlib import Path

    import torch

    from avse import files
    from avse.config import apply_preset, to_yaml
    from avse.data import load_dataset
    from avse.inputs import can_cache
    from avse.model import AVSE
    from avse.trainer import Trainer

    common.prepare_process()
    recipe = common.recipe_of(args)
    if args.preset:
        recipe = apply_preset(recipe, args.preset)
    if args.seed is not None:
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": args.seed})})
    source = args.data or recipe.data.source
    if not source:
        raise ValueError("no data: name a folder with captions.jsonl, or set data.source in the recipe")
    out = Path(args.out)
    if (out / "model").exists() and not (args.force or args.resume):
        raise FileExistsError(f"{out} holds a model already; --force trains anew, --resume goes on")
    if (out / "checkpoint").exists() and not (args.force or args.resume):
        raise FileExistsError(f"{out} holds a run that was stopped; --resume goes on, --force trains anew")
    device = common.device_of(args)
    root = args.root or recipe.data.root
    train, val = (load_dataset(source, root=root, split=split) for split in ("train", "val"))
    if recipe.data.max_train_images:
        train = train.first_by_hash(recipe.data.max_train_images)
    common.tell(train)
    common.tell(val)
    torch.manual_seed(recipe.train.seed)
    model = AVSE(recipe.model, captions=train.captions).to(device)
    cache = args.cache or recipe.data.cache
    if cache is None and can_cache(model, recipe.train.image_augment):
        cache = ".cache/avse"
    trainer = Trainer(model, recipe.train, cache=cache)
    result = trainer.fit(train, val, out=out, resume=args.resume)
    files.write_text(out / "recipe.yaml", to_yaml(recipe))
    if args.json:
        common.emit({"model": str(out / "model"), "best_epoch": result.best_epoch, "val_rsum": result.best_rsum})
        return 0
    print(f"best epoch {result.best_epoch + 1} of {recipe.train.epochs}: validation rSum {result.best_rsum:.1f}")
    print(f"model in {out / 'model'}; next: avse evaluate {out / 'model'} {source}")
    return 0
