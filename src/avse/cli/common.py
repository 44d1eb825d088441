"""Arguments and set-up that several verbs share."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avse.config import Recipe
    from avse.data import PairDataset, Skip
    from avse.data.shards import PairShards
    from avse.model import AVSE


CACHE = ".cache/avse"
"""Where grids of frozen encoders and the signatures of pictures are kept, unless told otherwise."""
DATA = (
    "a data set: its folder (captions.jsonl, captions.csv, Karpathy's dataset_*.json, id_mapping.json, *_ims.npy, "
    "COCO's captions_*.json, metadata.csv) or one of these files; or flickr30k, coco, flickr30k-regions, coco-regions "
    "with --root"
)


class MisuseError(ValueError):
    """Arguments that do not go together: exit status 2."""


def positive_int(text: str) -> int:
    """Read an argument that counts something: 1 or more."""
    return _whole(text, 1)


def natural_int(text: str) -> int:
    """Read an argument that may be 0."""
    return _whole(text, 0)


def positive_number(text: str) -> float:
    """Read an argument that is a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: a number above 0 is wanted")
    return number


def _whole(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if not least <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text}: a whole number of at least {least} is wanted")
    return number


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add --config, --preset and --set, which are applied in this order."""
    parser.add_argument("--config", metavar="RECIPE", help="a YAML file or a shipped recipe's name (avse recipes)")
    parser.add_argument("--preset", help="change the recipe into a preset: avse, official, vse_infinity, …")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, such as train.lr=1e-4; the last word over recipe and preset",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda where there is one, else cpu)")


def add_allow_download(parser: argparse.ArgumentParser) -> None:
    """Add --allow-download."""
    parser.add_argument(
        "--allow-download",
        action="store_true",
        help="fetch encoders named by a hub id that is not on this machine (safetensors and settings, no code)",
    )


def add_remote(parser: argparse.ArgumentParser, text: str) -> None:
    """Add --url and --token."""
    parser.add_argument("--url", metavar="URL", help=f"{text}, such as http://127.0.0.1:8377 (avse serve)")
    parser.add_argument("--token", help="the server's token (default: the environment variable AVSE_TOKEN)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line on stdout")


def add_force(parser: argparse.ArgumentParser) -> None:
    """Add --force."""
    parser.add_argument("--force", action="store_true", help="replace what is there")


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Read --config, --preset and --set."""
    from avse.config import load_recipe

    return load_recipe(args.config, args.set, args.preset)


def device_of(args: argparse.Namespace) -> str:
    """Choose the device; an unknown or absent one is an error."""
    import torch

    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return name


def load_model(folder: str, device: str) -> AVSE:
    """Load a saved model, or a pair of transformers (CLIP, SigLIP) as it is, onto a device."""
    from avse.start import open_model

    model = open_model(folder)
    model.to(device)
    return model


def without_leaks(
    recipe: Recipe, train: PairDataset, others: dict[str, PairDataset]
) -> tuple[PairDataset, dict[str, Any]]:
    """Look for training pictures that another split holds too, and do with them what data.leaks says.

    Returns:
        What to train on, and what run.json says of it.
    """
    from avse import parallel
    from avse.leaks import Leak, describe, drop, find_leaks

    data = recipe.data
    if data.leaks == "ignore":
        return train, {"leaks": {"looked": False}}
    leaks: tuple[Leak, ...] = ()
    with parallel.main_first():
        if parallel.is_main():
            leaks = find_leaks(train, others, cache=Path(data.cache or CACHE), workers=recipe.train.workers)
    leaks = parallel.broadcast_object(leaks)
    if leaks and data.leaks == "error":
        raise ValueError(describe(leaks))
    if leaks and parallel.is_main():
        print(describe(leaks, data.leaks == "drop"), file=sys.stderr)
    first = [asdict(leak) for leak in leaks[:20]]
    facts = {"leaks": {"looked": True, "found": len(leaks), "done": data.leaks, "first": first}}
    return (drop(train, leaks) if leaks and data.leaks == "drop" else train), facts


def tell(dataset: PairDataset | PairShards) -> None:
    """Print what was read and what was left out, on stderr."""
    print(dataset.summary(), file=sys.stderr)
    tell_skips(dataset.skipped)


def tell_skips(skips: Sequence[Skip]) -> None:
    """Print what was left out by name and reason, on stderr."""
    for skip in skips[:10]:
        print(f"  left out: {skip.name}: {skip.reason}", file=sys.stderr)
    if len(skips) > 10:
        print(f"  … and {len(skips) - 10} more", file=sys.stderr)


def emit(value: Any) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(value, ensure_ascii=False))


def prepare_process() -> None:
    """Set up a process that will compute: memory is kept, threads wait asleep, tokenizers do not warn about threads."""
    from avse.allocator import keep_freed_memory, let_threads_sleep

    keep_freed_memory()
    let_threads_sleep()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not sys.stderr.isatty():  # a bar in a log file is a line each time
        os.environ.setdefault("TQDM_MININTERVAL", "30")
