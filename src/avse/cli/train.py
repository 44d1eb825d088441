"""`avse train`: train a model on pairs of pictures and captions."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avse.cli import common

if TYPE_CHECKING:
    from avse.config import Recipe
    from avse.data import PairDataset
    from avse.data.shards import PairShards
    from avse.trainer import TrainResult

RECIPE = "recipe.yaml"
MOST_SCORES = 4 << 30
"""Bytes of validation scores: COCO's 5,000 images need half a GiB."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("data", nargs="?", help=f"{common.DATA} (default: data.source)")
    parser.add_argument(
        "--out",
        help=f"folder for model/, checkpoints/, history.json, curves.png, run.json, {RECIPE} (default: runs/ and the "
        "recipe's name); an ensemble has them in member-0/, member-1/, ...",
    )
    common.add_recipe(parser)
    parser.add_argument("--root", help="the picture folder, where it is not beside the captions")
    parser.add_argument(
        "--cache", help="folder for the grids of a frozen encoder (default: data.cache, else .cache/avse)"
    )
    parser.add_argument("--seed", type=common.natural_int, help="of heads, batches and views (default: train.seed)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest whole checkpoint in --out, to the bit as if it had not stopped",
    )
    common.add_allow_download(parser)
    common.add_device(parser)
    common.add_force(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Train, keep the best epoch by validation rSum, and say where it lies; an ensemble's members one by one.

    Under torchrun or accelerate launch every process comes here; the first one writes and speaks.
    """
    if args.resume and args.force:
        raise common.MisuseError("--resume goes on with a training and --force replaces it: name one")
    common.prepare_process()
    from avse import parallel
    from avse.data import PairDataset, load_dataset
    from avse.trainer.record import refuse_to_replace

    args.device = parallel.start(args.device)
    if not parallel.is_main():
        logging.getLogger().setLevel(logging.ERROR)
    recipe, out = _recipe(args), Path(args.out or f"runs/{Path(args.config or 'train').stem}")
    members = _members(recipe, out)
    with parallel.main_first():  # before what takes long; the trainer looks again when the folder is its own
        for _, folder in members if not args.force else ():
            refuse_to_replace(folder, args.resume)
    device = common.device_of(args)
    source, root = str(recipe.data.source), recipe.data.root
    train, val = _train_pairs(recipe), load_dataset(source, root=root, split="val")
    if recipe.data.max_val_images:
        val = val.first_by_hash(recipe.data.max_val_images)
    if (size := 4 * val.num_images * val.num_pairs) > MOST_SCORES:
        raise ValueError(
            f"{val.num_images:,} validation images x {val.num_pairs:,} captions are {size / 2**30:.0f} GiB of scores "
            f"an epoch, above {MOST_SCORES >> 30}: --set data.max_val_images=5000 takes a part of them"
        )
    if parallel.is_main():
        for part in (train, val):
            common.tell(part)
    test = _test_split(source, root)
    facts: dict[str, Any] = {"leaks": {"looked": False}}
    if not isinstance(train, PairDataset):
        if recipe.data.leaks in ("drop", "error"):
            raise ValueError(
                f"data.leaks={recipe.data.leaks} looks at the pictures of a folder, and shards are streamed: train on "
                "the folder, or make shards of a set without leaks (avse train tells them), and set data.leaks=ignore"
            )
        if recipe.data.leaks == "warn" and parallel.is_main():
            print("shards are not looked through for pictures of validation or test", file=sys.stderr)
    else:
        others = {"val": val} if test is None else {"val": val, "test": test}
        train, facts = common.without_leaks(recipe, train, others)
    for number, (member, folder) in enumerate(members, 1):
        result = _train(member, folder, train, val, device, args, facts)
        if not result.finished or (result.stopped_by and number < len(members)):
            if result.finished and parallel.is_main() and not args.json:
                print(f"stopped after {number} of {len(members)} models; go on with: {_again(args)}")
            return 130 if result.stopped_by == "SIGINT" else 0
    if not args.json and parallel.is_main():
        folders = [str(folder / "model") for _, folder in members]
        command = ["avse", "evaluate", *folders, source, *(["--root", root] if root else [])]
        command += ["--ensemble"] if len(members) > 1 else []
        command += ["--split", "val"] if test is None else []
        print(f"model{'s' if len(members) > 1 else ''} in {', '.join(folders)}; next: {shlex.join(command)}")
    return 0


def _test_split(source: str, root: str | None) -> PairDataset | None:
    """Return the test split, where the data name one, unlike COCO's own captions."""
    from avse.data import load_dataset

    try:
        test = load_dataset(source, root=root, split="test", check_images=False)
    except ValueError:
        return None
    return test if test.num_images else None


def _train(
    recipe: Recipe,
    out: Path,
    train: PairDataset | PairShards,
    val: PairDataset,
    device: str,
    args: argparse.Namespace,
    facts: dict[str, Any],
) -> TrainResult:
    """Train one model and say how it did."""
    import torch

    from avse import parallel
    from avse.inputs import can_cache
    from avse.start import build_model
    from avse.trainer import Trainer

    torch.manual_seed(recipe.train.seed)
    captions = getattr(train, "captions", None)
    model = build_model(recipe, captions, allow_download=args.allow_download).to(device)
    cache = recipe.data.cache
    if cache is None and can_cache(model, recipe.train.image_augment):
        cache = common.CACHE
    trainer = Trainer(model, recipe.train, cache=cache, shuffle_buffer=recipe.data.shuffle_buffer)

    def on_start(goes_on: bool) -> None:
        if args.resume and not goes_on:
            print(f"avse train: nothing to resume in {out}: starting anew", file=sys.stderr)
        _keep_recipe(recipe, out, goes_on)

    how: dict[str, Any] = {"resume": args.resume, "force": args.force, "on_start": on_start, "facts": facts}
    result = trainer.fit(train, val, out=out, **how)
    if not parallel.is_main():
        return result
    if not result.finished and args.json:
        common.emit({"stopped_by": result.stopped_by, "checkpoints": str(out / "checkpoints")})
    elif not result.finished:
        print(f"stopped, with a checkpoint in {out / 'checkpoints'}; go on with: {_again(args)}")
    elif args.json:
        common.emit({"model": str(out / "model"), "best_epoch": result.best_epoch, "val_rsum": result.best_rsum})
    else:
        print(f"best epoch {result.best_epoch + 1} of {recipe.train.epochs}: validation rSum {result.best_rsum:.1f}")
    return result


def _train_pairs(recipe: Recipe) -> PairDataset | PairShards:
    """Open the training pairs: a split, or shards where the recipe names them or the data set's folder holds some."""
    from avse.data import load_dataset
    from avse.data.shards import INFO, PairShards

    data, source = recipe.data, str(recipe.data.source)
    shards = data.shards or (source if Path(source, INFO).is_file() else None)
    if shards is not None:
        if data.max_train_images:
            raise ValueError("data.max_train_images takes a part of a split; of shards name fewer (data.shards)")
        return PairShards.open(shards)
    train = load_dataset(source, root=data.root, split="train")
    return train.first_by_hash(data.max_train_images) if data.max_train_images else train


def _members(recipe: Recipe, out: Path) -> list[tuple[Recipe, Path]]:
    """Return the recipe and folder of each model: an ensemble's seeds follow one another."""
    if recipe.ensemble == 1:
        return [(recipe, out)]
    seeds = (recipe.train.model_copy(update={"seed": recipe.train.seed + i}) for i in range(recipe.ensemble))
    one = [recipe.model_copy(update={"ensemble": 1, "train": train}) for train in seeds]
    return [(member, out / f"member-{i}") for i, member in enumerate(one)]


def _recipe(args: argparse.Namespace) -> Recipe:
    """Return the whole experiment: what the recipe leaves to the command line is filled in."""
    recipe = common.recipe_of(args)
    told = {"source": args.data, "root": args.root, "cache": args.cache}
    data = recipe.data.model_copy(update={name: value for name, value in told.items() if value is not None})
    if not data.source:
        raise ValueError("no data: name a folder with captions.jsonl, or set data.source in the recipe")
    seed = recipe.train.seed if args.seed is None else args.seed
    return recipe.model_copy(update={"data": data, "train": recipe.train.model_copy(update={"seed": seed})})


def _again(args: argparse.Namespace) -> str:
    """Return the command that goes on."""
    from avse import parallel

    words = shlex.join([*sys.argv[1:], *([] if args.resume else ["--resume"])])
    return f"{'as it was launched: … -m ' if parallel.world() > 1 else ''}avse {words}"


def _keep_recipe(recipe: Recipe, out: Path, goes_on: bool) -> None:
    """Write what repeats this run; a run that goes on keeps its own."""
    from avse import files
    from avse.config import to_yaml

    if not (goes_on and (out / RECIPE).exists()):
        files.write_text(out / RECIPE, to_yaml(recipe))
