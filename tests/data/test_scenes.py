"""avse.data.scenes: each caption speaks of one part, and the part is where its box says."""

from __future__ import annotations

import json
from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image

from avse.data import load_dataset
from avse.data.scenes import PLACES, _ground, compose, draw, make_scenes
from avse.data.shapes import COLOURS, PATTERNS, SHAPES, draw_shape


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "made"
    return folder, make_scenes(folder)


def test_counts_splits_and_captions(scenes):
    folder, counts = scenes
    data = load_dataset(folder, split="all")
    assert data.num_images == counts["pictures"] == 24 and data.num_pairs == counts["captions"]
    assert counts["splits"] == {"train": 16, "val": 4, "test": 4}
    assert {split: load_dataset(folder, split=split).num_images for split in counts["splits"]} == counts["splits"]
    for i, record in enumerate(data.records):
        assert 3 <= len(record["parts"]) <= 5
        assert tuple(part["caption"] for part in record["parts"]) == data.captions_of(i)
        assert Image.open(data.image_paths[i]).size == (64, 64)


def test_captions_name_shape_colour_and_place_of_one_part():
    seen = Counter()
    for number in range(200):
        parts = compose(0, number)
        assert len({(part.shape, part.colour) for part in parts}) == len({part.place for part in parts}) == len(parts)
        for part in parts:
            words = part.caption()
            assert part.colour in words and part.shape in words and PLACES[part.place] in words
            assert part.size in words and (part.pattern == "plain" or part.pattern in words)
            assert " a orange" not in f" {words}" and not words.startswith("an small")
            seen.update((part.shape, part.colour, part.pattern, part.place, part.wording, len(parts)))
    assert set(SHAPES) | set(COLOURS) | set(PATTERNS) | set(range(9)) <= set(seen)


@pytest.mark.parametrize("size", [64, 224])
def test_nothing_is_drawn_outside_the_boxes_and_every_box_is_filled(size):
    for number in range(20):
        image, boxes = draw(3, number, size)
        ground = np.asarray(_ground(Random(f"avse ground 3 {number}"), size)).astype(int)
        drawn = np.abs(np.asarray(image).astype(int) - ground).max(axis=2) > 0
        covered = np.zeros((size, size), int)
        for part, (x0, y0, x1, y1) in zip(compose(3, number), boxes):
            assert 0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size
            covered[y0:y1, x0:x1] += 1
            column, row = (x0 + x1) / 2 / size * 3, (y0 + y1) / 2 / size * 3
            assert (int(row), int(column)) == divmod(part.place, 3)
            inside = np.asarray(image)[y0:y1, x0:x1].astype(int)
            near = np.abs(inside - COLOURS[part.colour]).max(axis=2) < 40
            assert near.mean() > 0.05, (part, near.mean())
        assert covered.max() == 1
        assert not drawn[covered == 0].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_antialiased_and_differ(shape):
    picture, mask = draw_shape(shape, (10, 20, 30), "plain", 40)
    values = np.asarray(mask)
    assert picture.size == mask.size == (40, 40)
    assert 0.08 < (values > 127).mean() < 0.85
    assert picture.getcolors() == [(1600, (10, 20, 30))]
    others = [np.asarray(draw_shape(other, (0, 0, 0), "plain", 40)[1]) for other in SHAPES if other != shape]
    assert min(np.abs(values.astype(int) - other).mean() for other in others) > 8


def test_circle_and_square_by_area():
    circle, square = (
        np.asarray(draw_shape(name, (0, 0, 0), "plain", 100)[1]).sum() / 255 for name in ("circle", "square")
    )
    assert abs(circle - np.pi * 50**2) < 120
    assert abs(square - 84**2) < 200


def test_patterns_mix_the_colour_with_a_lighter_one():
    for pattern in ("striped", "dotted", "checked"):
        values = np.asarray(draw_shape("square", (0, 0, 200), pattern, 80)[0])
        assert 0.2 < (values == (0, 0, 200)).all(axis=2).mean() < 0.9
        assert (values == (114, 114, 224)).all(axis=2).any()  # 0.55 of the colour and 0.45 of white


def test_same_seed_same_scenes_and_no_dependence_on_count(tmp_path, scenes):
    make_scenes(tmp_path / "again", count=30)
    make_scenes(tmp_path / "other", count=24, seed=1)
    first, again, other = (
        [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
        for folder in (scenes[0], tmp_path / "again", tmp_path / "other")
    )
    assert [line["parts"] for line in first] == [line["parts"] for line in again[:24]]
    assert [line["parts"] for line in first] != [line["parts"] for line in other]
    for line in first:
        assert (scenes[0] / line["image"]).read_bytes() == (tmp_path / "again" / line["image"]).read_bytes()


def test_scenes_are_the_same_on_every_machine():
    assert [part.caption() for part in compose(0, 0)] == [
        "the half circle at the top is pink, small and checked",
        "a brown moon in the middle, striped",
        "a checked green square at the bottom",
    ]


def test_captions_of_a_test_split_rarely_repeat():
    captions = [part.caption() for number in range(60) for part in compose(0, number)]
    assert 1 - len(set(captions)) / len(captions) < 0.02


def test_too_few_or_too_small():
    for count, size in ((2, 64), (24, 31)):
        with pytest.raises(ValueError, match=f"{count} pictures of {size} px asked for: at least 3"):
            make_scenes("nowhere", count=count, size=size)
