"""Made scenes: pictures of three to five objects where each caption speaks of another part and the part's box is known.

They have the asymmetry the method is made for (an image holds more than any one caption says) with ground truth, need
no network, and the same seed gives the same scenes on every machine. Knows shapes and words, no model.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from PIL import Image, ImageDraw
from tqdm import tqdm

from avse.data.build import build_folder
from avse.data.dataset import SPLITS
from avse.data.shapes import COLOURS, PATTERNS, SHAPES, draw_shape
from avse.files import write_text

SIZES = {"small": 0.5, "": 0.7, "large": 0.96}
"""Diameter as a share of a ninth's side; the middle size goes unnamed, as a plain pattern does."""

PLACES = (
    *("at the top left", "at the top", "at the top right"),
    *("on the left", "in the middle", "on the right"),
    *("at the bottom left", "at the bottom", "at the bottom right"),
)
_GROUNDS = ((250, 246, 232), (232, 244, 250), (240, 250, 236), (250, 236, 240), (242, 238, 250), (246, 246, 246))
_VERSION = 1

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """One object: what it looks like, the ninth of the picture it stands in (0 to 8), and its centre there."""

    shape: str
    colour: str
    pattern: str
    size: str
    place: int
    shift: tuple[float, float]
    wording: int

    def caption(self) -> str:
        """Say all of it in one of five ways."""
        pattern = "" if self.pattern == "plain" else self.pattern
        looks = " ".join(word for word in (self.size, pattern, self.colour, self.shape) if word)
        plain, place = f"{self.colour} {self.shape}", PLACES[self.place]
        further = " and ".join(word for word in (self.size, pattern) if word)
        return (
            f"{_one(looks)} {place}",
            f"there is {_one(looks)} {place}",
            f"{place} there is {_one(looks)}",
            f"the {self.shape} {place} is {self.colour}" + (f", {further}" if further else ""),
            f"{_one(plain)} {place}" + (f", {further}" if further else ""),
        )[self.wording]


def make_scenes(
    out: str | Path, count: int = 24, size: int = 64, seed: int = 0, *, force: bool = False
) -> dict[str, Any]:
    """Write ``count`` pictures of ``size`` pixels square with captions.jsonl to ``out`` and return the counts.

    A line's ``parts`` give each caption's box, ``[x0, y0, x1, y1]`` in pixels, the last two exclusive. Splits are
    70 / 15 / 15 % train / val / test. A folder of the same settings is reused.

    Raises:
        ValueError: Fewer than 3 pictures (one a split), or of fewer than 32 pixels.
        FileExistsError: ``out`` holds something else and ``force`` is not set.
    """
    if count < 3 or size < 32:
        raise ValueError(
            f"{count} pictures of {size} px asked for: at least 3 (one a split) of at least 32 px are made"
        )
    settings = {"kind": "scenes", "version": _VERSION, "count": count, "size": size, "seed": seed}
    return build_folder(Path(out), settings, lambda folder: _make(folder, count, size, seed), force=force)


def compose(seed: int, number: int) -> list[Part]:
    """Return the parts of one scene; no two share shape and colour, or their ninth of the picture."""
    random = Random(f"avse scene {seed} {number}")
    places, parts = list(range(len(PLACES))), list[Part]()
    wanted = 3 + int(random.random() * 3)
    while len(parts) < wanted:
        shape, colour = _pick(random, list(SHAPES)), _pick(random, list(COLOURS))
        if any((part.shape, part.colour) == (shape, colour) for part in parts):
            continue
        place = places.pop(int(random.random() * len(places)))
        size, pattern = _pick(random, list(SIZES)), _pick(random, list(PATTERNS))
        shift = (random.random(), random.random())
        parts.append(Part(shape, colour, pattern, size, place, shift, int(random.random() * 5)))
    return parts


def draw(seed: int, number: int, size: int) -> tuple[Image.Image, list[tuple[int, int, int, int]]]:
    """Return the picture of a scene and the boxes of its parts, in the order of `compose`."""
    random = Random(f"avse ground {seed} {number}")
    image = _ground(random, size)
    boxes = []
    for part in compose(seed, number):
        diameter = max(4, int(SIZES[part.size] * size / 3))
        room = size / 3 - diameter
        x = int(part.place % 3 * size / 3 + part.shift[0] * room)
        y = int(part.place // 3 * size / 3 + part.shift[1] * room)
        picture, mask = draw_shape(part.shape, COLOURS[part.colour], part.pattern, diameter)
        image.paste(picture, (x, y), mask)
        left, top, right, bottom = mask.getbbox() or (0, 0, diameter, diameter)
        boxes.append((x + left, y + top, x + right, y + bottom))
    return image, boxes


def _make(folder: Path, count: int, size: int, seed: int) -> dict[str, Any]:
    (folder / "images").mkdir()
    splits = _splits(count, seed)

    def one(number: int) -> dict[str, Any]:
        image, boxes = draw(seed, number, size)
        name = f"images/{number:06d}.png"
        image.save(folder / name)
        captions = [part.caption() for part in compose(seed, number)]
        parts = [{"caption": caption, "box": list(box)} for caption, box in zip(captions, boxes)]
        return {"image": name, "captions": captions, "split": splits[number], "parts": parts}

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        lines = list(tqdm(pool.map(one, range(count)), total=count, desc="scenes", unit="picture"))
    write_text(folder / "captions.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    times = Counter(caption for line in lines for caption in line["captions"])
    total = sum(times.values())
    return {
        "pictures": count,
        "captions": total,
        "splits": {split: splits.count(split) for split in SPLITS},
        "captions_shared": round(sum(times[caption] for caption in times if times[caption] > 1) / total, 4),
    }


def _splits(count: int, seed: int) -> list[str]:
    random = Random(f"avse splits {seed}")
    order = sorted(range(count), key=[random.random() for _ in range(count)].__getitem__)
    part = max(1, round(count * 0.15))
    splits = ["train"] * count
    for position, number in enumerate(order[: 2 * part]):
        splits[number] = "val" if position < part else "test"
    return splits


def _ground(random: Random, size: int) -> Image.Image:
    """A pale ground: plain, shaded towards a second tone, or with faint lines."""
    kind, first, second = int(random.random() * 3), _pick(random, _GROUNDS), _pick(random, _GROUNDS)
    image = Image.new("RGB", (size, size), first)
    paint = ImageDraw.Draw(image)
    if kind == 1:
        for y in range(size):
            shade = [(a * (size - 1 - y) + b * y) // (size - 1) for a, b in zip(first, second)]
            paint.line((0, y, size, y), fill=(shade[0], shade[1], shade[2]))
    elif kind == 2:
        for at in range(0, size, max(8, size // 12)):
            paint.line((at, 0, at, size), fill=second)
            paint.line((0, at, size, at), fill=second)
    return image


def _one(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def _pick(random: Random, values: list[T] | tuple[T, ...]) -> T:
    return values[int(random.random() * len(values))]
