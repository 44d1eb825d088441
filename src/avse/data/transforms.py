"""Image augmentation in training: a crop and a flip, with Pillow alone."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def crop_and_flip(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """Crop both sides by one ratio between 0.6 and 1, at a random place, and flip half of the pictures."""
    ratio = random.uniform(0.6, 1.0)
    width, height = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    left = int(random.integers(image.width - width + 1))
    top = int(random.integers(image.height - height + 1))
    image = image.crop((left, top, left + width, top + height))
    return ImageOps.mirror(image) if random.random() < 0.5 else image
