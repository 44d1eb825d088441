"""avse.data.transforms: each change of colour against Pillow's enhancers, numpy and colorsys; draws and limits."""

from __future__ import annotations

import colorsys
import itertools

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from avse.data import transforms
from avse.data.transforms import augment, crop_and_flip, recolor

LUMA = np.array([0.299, 0.587, 0.114])


@pytest.fixture
def picture():
    values = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    values[:10] = values[:10] // 4 + 90  # greyish, which nothing cuts off
    return Image.fromarray(values)


def naive(image, changes):
    """The definition, pixel by pixel in float64, cut to bytes at the end alone."""
    pixels = np.asarray(image.convert("RGB"), np.float64)
    for change, amount in changes:
        grey = (pixels @ LUMA)[..., None]
        if change == "brightness":
            pixels = pixels * amount
        elif change == "contrast":
            pixels = grey.mean() + amount * (pixels - grey.mean())
        elif change == "saturation":
            pixels = grey + amount * (pixels - grey)
        else:
            to_yiq = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
            yiq = pixels @ to_yiq.T
            turned = (yiq[..., 1] + 1j * yiq[..., 2]) * np.exp(2j * np.pi * amount)
            pixels = np.stack([yiq[..., 0], turned.real, turned.imag], -1) @ np.linalg.inv(to_yiq).T
    return np.clip(np.rint(pixels), 0, 255)


def off(image, expected):
    return np.abs(np.asarray(image, np.float64) - np.asarray(expected, np.float64)).max()


@pytest.mark.parametrize("amount", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ("change", "enhancer"),
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("saturation", ImageEnhance.Color),
    ],
)
def test_changes_are_those_of_pillow_and_of_the_definition(picture, change, enhancer, amount):
    done = recolor(picture, [(change, amount)])
    assert off(done, naive(picture, [(change, amount)])) <= 1
    assert off(done, enhancer(picture).enhance(amount)) <= 2  # Pillow rounds its grey first
    if amount == 1.0:
        assert off(done, picture) == 0


@pytest.mark.parametrize("share", [-0.25, -0.07, 0.0, 0.1, 0.25])
def test_hue_turns_the_plane_of_yiq_as_colorsys_has_it(share):
    """Single pixels; colorsys has its own, rounder coefficients."""
    for rgb in itertools.product((60, 128, 190), repeat=3):
        y, i, q = colorsys.rgb_to_yiq(*(value / 255 for value in rgb))
        turned = complex(i, q) * np.exp(2j * np.pi * share)
        expected = np.array(colorsys.yiq_to_rgb(y, turned.real, turned.imag)) * 255
        assert off(recolor(Image.new("RGB", (1, 1), rgb), [("hue", share)]), np.reshape(expected, (1, 1, 3))) <= 4
    if share == 0:
        assert off(recolor(Image.new("RGB", (1, 1), (10, 200, 90)), [("hue", 0.0)]), [[[10, 200, 90]]]) == 0


def test_a_hue_moves_by_its_share_and_grey_stays_grey():
    """HSV's hue of a weak colour moves nearly by the share, the same way for all; grey has none to turn."""
    for rgb in ((150, 120, 120), (120, 150, 120), (120, 120, 150)):
        before = colorsys.rgb_to_hsv(*rgb)[0]
        for share in (0.1, -0.1):
            after = colorsys.rgb_to_hsv(*recolor(Image.new("RGB", (1, 1), rgb), [("hue", share)]).getpixel((0, 0)))[0]
            moved = (after - before + 0.5) % 1 - 0.5
            assert 0.05 < abs(moved) < 0.17 and (moved < 0) == (share > 0), (rgb, share, moved)
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert off(recolor(grey, [("hue", 0.2), ("saturation", 0.3)]), grey.convert("RGB")) == 0


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_any_order_is_one_matrix(picture, order):
    changes = [("brightness", 0.8), ("contrast", 1.3), ("saturation", 0.6), ("hue", -0.05)]
    chosen = [changes[i] for i in order]
    assert off(recolor(picture, chosen), naive(picture, chosen)) <= 1


def test_without_color_it_is_crop_and_flip_bit_for_bit(picture):
    """And both are, draw by draw, what they always were."""
    for seed in range(30):
        random = np.random.default_rng(seed)
        ratio = random.uniform(0.6, 1.0)
        width, height = round(53 * ratio), round(37 * ratio)
        left, top = int(random.integers(53 - width + 1)), int(random.integers(37 - height + 1))
        expected = picture.crop((left, top, left + width, top + height))
        expected = ImageOps.mirror(expected) if random.random() < 0.5 else expected
        ours, theirs = np.random.default_rng(seed), np.random.default_rng(seed)
        done, plain = augment(picture, ours), crop_and_flip(picture, theirs)
        assert done.tobytes() == plain.tobytes() == expected.tobytes() and done.size == expected.size
        assert ours.bit_generator.state == theirs.bit_generator.state == random.bit_generator.state


def test_with_color_the_crop_is_the_same_and_the_generator_decides(picture):
    def run(seed, color):
        return augment(picture, np.random.default_rng(seed), color)

    assert run(3, 0.4).tobytes() == run(3, 0.4).tobytes() != run(4, 0.4).tobytes()
    for seed in range(10):
        plain, colored = run(seed, 0), run(seed, 0.4)
        assert colored.size == plain.size and colored.tobytes() != plain.tobytes()
        assert off(run(seed, 0.001), plain) <= 2  # next to nothing was changed: the same place, the same side


def test_factors_fill_their_limits_and_half_are_flipped(picture, monkeypatch):
    seen = []
    monkeypatch.setattr(transforms, "recolor", lambda image, changes: seen.append(list(changes)))
    random = np.random.default_rng(0)
    for _ in range(2000):
        augment(picture, random, 0.4)
    for change, centre, width in (
        ("brightness", 1, 0.4),
        ("contrast", 1, 0.4),
        ("saturation", 1, 0.4),
        ("hue", 0, 0.1),
    ):
        amounts = np.array([dict(changes)[change] for changes in seen])
        assert np.abs(amounts - centre).max() <= width
        counts = np.histogram(amounts, 10, (centre - width, centre + width))[0]
        assert counts.min() > 130 and counts.max() < 270, change  # 200 each, five standard deviations
    orders = {tuple(change for change, _ in changes) for changes in seen}
    assert len(orders) == 24
    left = Image.fromarray(np.repeat([[0] * 32 + [255] * 32], 64, axis=0).astype(np.uint8))
    flips = sum(np.asarray(crop_and_flip(left, random))[0, 0] == 255 for _ in range(1000))
    assert 420 < flips < 580


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_tiny_and_grey_pictures(size, mode):
    image = Image.new(mode, size, 77)
    for seed in range(20):
        done = augment(image, np.random.default_rng(seed), 1.0)
        assert done.mode == "RGB" and 1 <= done.width <= size[0] and 1 <= done.height <= size[1]
        assert augment(image, np.random.default_rng(seed)).mode == mode
