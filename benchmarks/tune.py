"""Try settings on the validation split alone: one trial a line of a file, results appended as they come, resumable.

    python benchmarks/tune.py data/openclipart --trials benchmarks/trials/openclipart.jsonl \
        --out benchmarks/results/tune-openclipart.jsonl --cache runs/demo/cache

A trial is {"system": "avse", "set": ["model.block_width=512", "train.temperature=0.1"]}; what it does not set is
BASE below and the defaults. Several processes share the work with --part 0/2, 1/2.
With --show the results are printed, best first, a system at a time. The test split is never read.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

BASE = [
    "train.objective=infonce",
    "train.score_scale=sum",
    "train.temperature=0.05",
    "train.decorrelation_weight=0",
    "train.epochs=12",
    "train.lr=5e-4",
    "model.block_width=256",
]


def main() -> None:
    """Run the trials that have no result yet, or show the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", help="folder with captions.jsonl")
    parser.add_argument("--trials", help="one trial a line")
    parser.add_argument("--out", required=True, help="results, one a line")
    parser.add_argument("--cache", default=".cache/avse")
    parser.add_argument("--part", default="0/1", help="k/n: this process takes every n-th trial")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    if args.show:
        show(read(Path(args.out)))
    else:
        run(args)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the trials of a file of lines, without its line of the machine; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [row for row in map(json.loads, filter(str.strip, lines)) if "system" in row]


def show(results: list[dict[str, Any]]) -> None:
    """Print a table a system, best validation rSum first."""
    for system in dict.fromkeys(row["system"] for row in results):
        rows = sorted((row for row in results if row["system"] == system), key=lambda row: -row["val_rsum"])
        print(f"{system}: {len(rows)} trials")
        for row in rows:
            print(f"  {row['val_rsum']:6.1f}  epoch {row['best_epoch']:2}  {' '.join(row['set'])}")


def run(args: argparse.Namespace) -> None:
    """Train each trial and append its validation rSum."""
    import torch

    from avse.allocator import keep_freed_memory
    from avse.benchmarks import machine
    from avse.config import load_recipe
    from avse.data import load_dataset
    from avse.inputs import open_inputs, select
    from avse.model import AVSE
    from avse.trainer import Trainer

    keep_freed_memory()
    torch.set_num_threads(args.threads)
    mine, processes = map(int, args.part.split("/"))
    encoders = AVSE(load_recipe(None).model)
    whole = open_inputs(encoders, load_dataset(args.data, split="all"), cache=args.cache)
    train, val = (select(whole, load_dataset(args.data, split=split)) for split in ("train", "val"))
    out = Path(args.out)
    if not out.exists():
        out.write_text(json.dumps({"machine": machine()}) + "\n")
    for number, trial in enumerate(read(Path(args.trials))):
        if number % processes != mine or any(
            (row["system"], row["set"]) == (trial["system"], trial["set"]) for row in read(out)
        ):
            continue
        recipe = load_recipe(None, [*BASE, *trial["set"]])
        torch.manual_seed(recipe.train.seed)
        model = AVSE(recipe.model, image_encoder=encoders.image_encoder, text_encoder=encoders.text_encoder)
        started = time.perf_counter()
        result = Trainer(model, recipe.train, progress=False).fit(train, val)
        row = {
            **trial,
            "val_rsum": round(result.best_rsum, 2),
            "best_epoch": result.best_epoch + 1,
            "val_curve": [round(entry["val"]["rsum"], 1) for entry in result.history],
            "seconds": round(time.perf_counter() - started),
        }
        with out.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(f"{row['val_rsum']:6.1f}  {trial['system']}  {' '.join(trial['set'])}", flush=True)


if __name__ == "__main__":
    main()
