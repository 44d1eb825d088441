"""Why does a picture answer a sentence? The matches and the words on the terminal, the heat as a PNG.

python examples/explain_picture.py data/openclipart/images/… "a red flower" --out why.png
"""

from __future__ import annotations

import argparse

from avse import AVSE
from avse.explain import explain
from avse.explain.drawing import draw


def main() -> None:
    """Explain and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture")
    parser.add_argument("sentence")
    parser.add_argument("--model", default="runs/demo/model")
    parser.add_argument("--out", default="why.png")
    args = parser.parse_args()
    found = explain(AVSE.from_pretrained(args.model), args.picture, args.sentence)
    print(f"S = {found.score:.3f}, of which {found.beyond:.3f} belongs to no cell")
    for match in found.matches:
        print(f"text block {match.text_block}: image block {match.image_block} of view {match.view}, {match.score:.3f}")
    for word in sorted(found.words, key=lambda word: -word.score):
        print(f"{word.score:+.3f}  {word.word}")
    print(draw(found, args.out, force=True))


if __name__ == "__main__":
    main()
