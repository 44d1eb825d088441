"""Image augmentation in training: a crop, a flip and other colours, with Pillow alone.

Knows single pictures and a random generator; no data set and no encoder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageStat

Change = Literal["brightness", "contrast", "saturation", "hue"]

_LUMA = np.array([0.299, 0.587, 0.114])
_TO_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_TO_RGB = np.linalg.inv(_TO_YIQ)


def crop_and_flip(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Crop both sides by one ratio between 0.6 and 1, at a random place, and flip half of the pictures."""
    ratio = random.uniform(0.6, 1.0)
    width, height = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    left = int(random.integers(image.width - width + 1))
    top = int(random.integers(image.height - height + 1))
    image = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(image) if random.random() < 0.5 else image


def augment(image: Image.Image, random: np.random.Generator, color: float = 0.0) -> Image.Image:
    """Crop and flip; where ``color`` is above 0 also `recolor`, in a random order.

    Args:
        image: A picture, of which RGB comes back where its colours are changed.
        random: All draws come from it; those of `crop_and_flip` are the same whatever ``color`` is.
        color: In [0, 1]: brightness, contrast and saturation change by a factor in [1 - color, 1 + color], hue by up
            to color / 4 of the circle either way; each factor is drawn evenly.
    """
    image = crop_and_flip(image, random)
    if color <= 0:
        return image
    brightness, contrast, saturation = random.uniform(1 - color, 1 + color, 3).tolist()
    hue = random.uniform(-color / 4, color / 4)
    changes: list[tuple[Change, float]] = [
        ("brightness", brightness),
        ("contrast", contrast),
        ("saturation", saturation),
        ("hue", hue),
    ]
    return recolor(image, [changes[i] for i in random.permutation(4)])


def recolor(image: Image.Image, changes: Iterable[tuple[Change, float]]) -> Image.Image:
    """Return the picture as RGB with other colours.

    Every change is linear in RGB, so all of them are one matrix, applied and rounded once (faster than decoding).

    Args:
        image: A picture.
        changes: In this order: ``brightness`` times a factor; ``contrast`` around the picture's mean grey and
            ``saturation`` around each pixel's grey by a factor (0 grey, 1 as it is); ``hue`` turned by a share of the
            circle at equal grey (a rotation of YIQ's colour plane).
    """
    image = image.convert("RGB")
    mean = np.array(ImageStat.Stat(image).mean)
    matrix, offset = np.eye(3), np.zeros(3)
    for change, amount in changes:
        if change == "contrast":
            grey = _LUMA @ (matrix @ mean + offset)
            matrix, offset = amount * matrix, amount * offset + (1 - amount) * grey
        else:
            step = _turned(amount) if change == "hue" else amount * np.eye(3)
            if change == "saturation":
                step = step + (1 - amount) * _LUMA
            matrix, offset = step @ matrix, step @ offset
    return image.convert("RGB", tuple(np.column_stack([matrix, offset]).ravel().tolist()))


def _turned(share: float) -> NDArray[np.float64]:
    """Return the RGB matrix (3, 3) that turns the colour plane of YIQ by a share of the circle."""
    cos, sin = math.cos(2 * math.pi * share), math.sin(2 * math.pi * share)
    turned: NDArray[np.float64] = _TO_RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _TO_YIQ
    return turned
