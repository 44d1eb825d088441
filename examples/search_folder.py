"""Search a folder of pictures: make its index or bring it up to date, ask, draw the answers.

python examples/search_folder.py "a red flower" --pictures data/openclipart --out photos.avse
"""

from __future__ import annotations

import argparse
from pathlib import Path

from avse import Index
from avse.sheet import Row, Tile, contact_sheet


def main() -> None:
    """Index, search, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sentence")
    parser.add_argument("--pictures", default="data/openclipart")
    parser.add_argument("--model", default="runs/demo/model")
    parser.add_argument("--out", default="photos.avse")
    args = parser.parse_args()
    there = Path(args.out).exists()
    with Index.open(args.out, args.model) if there else Index.create(args.out, args.model) as index:
        report = index.add_images(args.pictures)  # the second time: only what is new or changed
        print(f"{report.added} added, {len(index)} in the index")
        hits = index.search(args.sentence, k=10)
        for hit in hits:
            weak = "" if not hit.weak else "  (weak)"
            print(f"{hit.score:.3f}  {hit.id}{weak}")
        tiles = [Tile(index.picture(hit), hit.id, hit.score) for hit in hits]
    print(contact_sheet([Row(args.sentence, tiles)], "answers.png", force=True))


if __name__ == "__main__":
    main()
