"""Is one model better than another? Both on one test split, and the paired difference with its interval.

python examples/compare_models.py runs/further/model runs/demo/model data/openclipart
"""

from __future__ import annotations

import argparse

from avse import AVSE, load_dataset
from avse.evaluate import score
from avse.inputs import open_inputs
from avse.protocols import measure
from avse.rankings import Rankings, compare, rankings_of


def ranked(folder: str, data: str) -> Rankings:
    """Rank every picture and text of the test split by a model."""
    model = AVSE.from_pretrained(folder)
    scored = score([(model, open_inputs(model, load_dataset(data, split="test"), cache=".cache/avse"), {})])
    report = measure(scored)
    print(f"{folder}\n{report.table()}\n")
    return rankings_of(scored, {"plain": report})


def main() -> None:
    """Rank by both and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs=2)
    parser.add_argument("data")
    args = parser.parse_args()
    found = compare(*(ranked(folder, args.data) for folder in args.models))["plain"]["plain"]
    rsum = found["difference"]["rsum"]
    low, high = rsum["ci"]
    print(f"rSum, first minus second: {rsum['mean']:+.1f} (95 %: {low:+.1f} to {high:+.1f}), p {rsum['p']:.3f}")


if __name__ == "__main__":
    main()
