"""Train a model further on your own pairs, and say whether it helped: paired, on pictures that neither has seen.

python examples/fine_tune.py data/openclipart --model runs/demo/model --out runs/further
"""

from __future__ import annotations

import argparse

from avse import AVSE, Trainer, evaluate, load_dataset
from avse.config import load_recipe


def main() -> None:
    """Measure, train, measure again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", help="folder with captions.jsonl")
    parser.add_argument("--model", default="runs/demo/model")
    parser.add_argument("--out", default="runs/further")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    recipe = load_recipe("demo", [f"train.epochs={args.epochs}", "train.lr=2e-4"])
    train, val, test = (load_dataset(args.data, split=split) for split in ("train", "val", "test"))
    model = AVSE.from_pretrained(args.model)
    before = evaluate(model, test, cache=".cache/avse")
    result = Trainer(model, recipe.train, cache=".cache/avse").fit(train, val, out=args.out)
    if not result.finished:
        parser.exit(1, f"interrupted: {args.out} holds checkpoints, no model\n")
    after = evaluate(model, test, cache=".cache/avse")
    print(f"epoch {result.best_epoch + 1} of {args.epochs}, chosen on validation (rSum {result.best_rsum:.1f})")
    print(f"test rSum {before.rsum:.1f} before, {after.rsum:.1f} after; the model is in {args.out}/model")


if __name__ == "__main__":
    main()
