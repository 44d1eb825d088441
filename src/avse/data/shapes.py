"""Antialiased shapes with patterns, for made scenes. Knows Pillow alone; the same numbers give the same pixels."""

from __future__ import annotations

import math
from collections.abc import Callable

from PIL import Image, ImageDraw

FINE = 4
"""Shapes are drawn this many times larger and averaged down."""

Colour = tuple[int, int, int]
Points = list[tuple[int, int]]

COLOURS: dict[str, Colour] = {
    "red": (214, 32, 36),
    "green": (44, 150, 56),
    "blue": (36, 84, 205),
    "yellow": (242, 205, 20),
    "orange": (240, 128, 16),
    "purple": (126, 46, 160),
    "pink": (246, 130, 182),
    "brown": (122, 74, 34),
    "black": (20, 20, 22),
    "grey": (132, 134, 138),
    "turquoise": (38, 184, 180),
}
PATTERNS = ("plain", "striped", "dotted", "checked")


def draw_shape(shape: str, colour: Colour, pattern: str, diameter: int) -> tuple[Image.Image, Image.Image]:
    """Return the shape's RGB picture and its mask ("L", 255 inside), both ``diameter`` pixels square."""
    side = diameter * FINE
    mask = Image.new("L", (side, side), 0)
    SHAPES[shape](ImageDraw.Draw(mask), side)
    return _fill(colour, pattern, side).reduce(FINE), mask.reduce(FINE)


def _fill(colour: Colour, pattern: str, side: int) -> Image.Image:
    light = tuple((55 * channel + 45 * 255) // 100 for channel in colour)
    fill = Image.new("RGB", (side, side), colour)
    draw, step = ImageDraw.Draw(fill), max(2, side // 8)
    if pattern == "striped":
        for x in range(step // 2, side, 2 * step):
            draw.rectangle((x, 0, x + step - 1, side), fill=light)
    elif pattern == "checked":
        for row, y in enumerate(range(0, side, step)):
            for x in range(row % 2 * step, side, 2 * step):
                draw.rectangle((x, y, x + step - 1, y + step - 1), fill=light)
    elif pattern == "dotted":
        radius = step * 2 // 5
        for row, y in enumerate(range(step // 2, side, step)):
            for x in range(step // 2 + row % 2 * step, side, 2 * step):
                draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=light)
    return fill


def _turn(side: int, corners: int, inner: float = 1.0, start: float = -0.25) -> Points:
    """Corners on the circle, every second one at ``inner`` of its radius; ``start`` in turns, -0.25 is the top."""
    points = []
    for i in range(corners):
        angle, radius = 2 * math.pi * (start + i / corners), side / 2 * (inner if i % 2 else 1.0)
        points.append((round(side / 2 + radius * math.cos(angle)), round(side / 2 + radius * math.sin(angle))))
    return points


def _polygon(*corners: tuple[float, float]) -> Callable[[ImageDraw.ImageDraw, int], None]:
    def paint(draw: ImageDraw.ImageDraw, side: int) -> None:
        draw.polygon([(round(x * side), round(y * side)) for x, y in corners], fill=255)

    return paint


def _disc(
    draw: ImageDraw.ImageDraw, side: int, x: float = 0.5, y: float = 0.5, radius: float = 0.5, to: int = 255
) -> None:
    box = [round(value * (side - 1)) for value in (x - radius, y - radius, x + radius, y + radius)]
    draw.ellipse((box[0], box[1], box[2], box[3]), fill=to)


def _ring(draw: ImageDraw.ImageDraw, side: int) -> None:
    _disc(draw, side)
    _disc(draw, side, radius=0.27, to=0)


def _moon(draw: ImageDraw.ImageDraw, side: int) -> None:
    _disc(draw, side)
    _disc(draw, side, x=0.74, y=0.42, radius=0.42, to=0)


def _flower(draw: ImageDraw.ImageDraw, side: int) -> None:
    for x, y in _turn(1000, 6):
        _disc(draw, side, x=0.5 + (x / 1000 - 0.5) * 0.62, y=0.5 + (y / 1000 - 0.5) * 0.62, radius=0.19)
    _disc(draw, side, radius=0.13, to=0)


def _heart(draw: ImageDraw.ImageDraw, side: int) -> None:
    points = []
    for i in range(64):
        turn = 2 * math.pi * i / 64
        x = 16 * math.sin(turn) ** 3
        y = 13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)
        points.append((round(side * (0.5 + x / 34)), round(side * (0.46 - y / 34))))
    draw.polygon(points, fill=255)


SHAPES: dict[str, Callable[[ImageDraw.ImageDraw, int], None]] = {
    "circle": _disc,
    "square": _polygon((0.08, 0.08), (0.92, 0.08), (0.92, 0.92), (0.08, 0.92)),
    "triangle": _polygon((0.5, 0.04), (0.98, 0.92), (0.02, 0.92)),
    "star": lambda draw, side: draw.polygon(_turn(side, 10, inner=0.42), fill=255),
    "ring": _ring,
    "cross": _polygon(
        *((0.35, 0.02), (0.65, 0.02), (0.65, 0.35), (0.98, 0.35), (0.98, 0.65), (0.65, 0.65)),
        *((0.65, 0.98), (0.35, 0.98), (0.35, 0.65), (0.02, 0.65), (0.02, 0.35), (0.35, 0.35)),
    ),
    "heart": _heart,
    "moon": _moon,
    "diamond": _polygon((0.5, 0.0), (0.85, 0.5), (0.5, 1.0), (0.15, 0.5)),
    "arrow": _polygon(
        *((0.0, 0.36), (0.52, 0.36), (0.52, 0.1), (1.0, 0.5), (0.52, 0.9), (0.52, 0.64), (0.0, 0.64)),
    ),
    "hexagon": lambda draw, side: draw.polygon(_turn(side, 6), fill=255),
    "flower": _flower,
    "lightning bolt": _polygon(
        *((0.58, 0.0), (0.18, 0.56), (0.45, 0.56), (0.32, 1.0), (0.82, 0.38), (0.53, 0.38), (0.76, 0.0)),
    ),
    "half circle": lambda draw, side: draw.pieslice((0, round(side * 0.2), side - 1, round(side * 1.2)), 180, 360, 255),
}
