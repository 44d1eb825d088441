"""Explanations drawn: heat where its cells are and in the frame, nothing below 0 hot, words and files as they are."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from avse.explain import Explanation, Match, Word, drawing
from avse.explain.drawing import draw, overlay, to_html
from html_checks import Checked

GREY = Image.new("RGB", (120, 120), (128, 128, 128))


def made(heats, *, text="a red dog", image=GREY, frame=(0.0, 0.0, 1.0, 1.0), boxes=None, shares=None, method="exact"):
    heats = np.asarray(heats, np.float32)
    score = float(heats.sum()) + 0.25
    found = list(re.finditer(r"\w+", text))
    shares = shares or [1 / max(1, len(found))] * len(found)
    words = tuple(Word(m.group(), m.start(), m.end(), s * score, s) for m, s in zip(found, shares))
    matches = tuple(
        Match(j, 2 * j, j % 2, float(heat.sum()), float(heat.sum()) / (score or 1)) for j, heat in enumerate(heats)
    )
    boxes = None if boxes is None else np.asarray(boxes, np.float32)
    return Explanation(text, score, matches, heats.shape[1:], heats, 0.25, words, 0.0, frame, boxes, method, image)


def warm(image: Image.Image) -> np.ndarray:
    """Red minus blue of each pixel: hot colours lie above 60, the greyed picture at 0."""
    pixels = np.asarray(image, int)
    return pixels[..., 0] - pixels[..., 2]


def one_cell(row, column, value=0.5, grid=(4, 4)):
    heat = np.zeros((1, *grid))
    heat[0, row, column] = value
    return heat


@pytest.mark.parametrize(("row", "column"), [(0, 0), (1, 2), (3, 3), (2, 0)])
def test_the_hottest_pixels_lie_in_the_hottest_cell(row, column):
    seen = warm(overlay(made(one_cell(row, column)), 120))
    y, x = np.unravel_index(seen.argmax(), seen.shape)
    assert (y // 30, x // 30) == (row, column) and seen.max() > 60
    far = seen[(row + 2) % 4 * 30 + 15, (column + 2) % 4 * 30 + 15]
    assert abs(far) < 12  # the picture's own grey


def test_what_lowers_the_score_is_not_hot_and_nothing_is_nothing():
    assert abs(warm(overlay(made(-one_cell(1, 1)), 120))[:, 31:59]).max() < 12
    assert warm(overlay(made(np.zeros((2, 4, 4))), 120)).max() < 12


def test_more_heat_is_a_lighter_hotter_colour():
    ramp = drawing._ramp(np.linspace(0, 1, 200))
    light = ramp @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) > 0).all() and drawing._ramp(np.array(2.0)).tolist() == ramp[-1].tolist()


@pytest.mark.parametrize("frame", [(0.25, 0.0, 0.75, 1.0), (0.0, 0.3, 1.0, 0.7)])
def test_only_the_frame_is_heated(frame):
    seen = warm(overlay(made(np.full((1, 2, 2), 0.1), frame=frame, image=GREY.resize((200, 200))), 200))
    x0, y0, x1, y1 = (round(200 * share) for share in frame)
    inside = np.zeros((200, 200), bool)
    inside[y0:y1, x0:x1] = True
    assert seen[inside].min() > 60 and abs(seen[~inside]).max() < 12


def test_a_frame_beyond_the_picture_keeps_its_cells_in_place():
    # cells of a quarter each, of a frame twice as high as the picture: the middle two rows are what is seen
    heat = np.zeros((1, 4, 1))
    heat[0, 1] = 0.5
    seen = warm(overlay(made(heat, frame=(0, -0.5, 1, 1.5)), 120))
    assert seen.shape == (120, 120) and seen[20].min() > 60 and seen[110].max() < 12


def test_regions_are_boxes_and_the_hotter_one_wins_where_they_overlap():
    boxes = [(0, 0, 0.5, 1), (0.25, 0.25, 1, 0.75)]
    seen = overlay(made([[[0.1, 0.4]]], boxes=boxes), 120)
    inside = {
        name: seen.getpixel(place)
        for name, place in {"cold": (15, 20), "both": (45, 60), "hot": (100, 60), "none": (100, 10)}.items()
    }
    assert inside["both"] == inside["hot"] != inside["cold"] and max(inside["none"]) - min(inside["none"]) < 12
    assert sum(inside["hot"]) > sum(inside["cold"])


@pytest.mark.parametrize("size", [(300, 100), (80, 400), (1, 50), (20, 20)])
def test_pictures_keep_their_shape(size):
    seen = overlay(made(one_cell(0, 0), image=Image.new("RGB", size, (9, 9, 9))), 200)
    assert max(seen.size) == 200 and abs(seen.width / seen.height - size[0] / size[1]) < 0.1


def test_the_drawing_holds_picture_heat_and_shades(tmp_path):
    explained = made(one_cell(1, 1), image=Image.new("RGB", (300, 300), (0, 0, 200)), shares=[0.0, 0.5, -0.5])
    out = draw(explained, tmp_path / "why.png")
    pixels = np.asarray(Image.open(out).convert("RGB"), int)
    assert pixels.shape[1] == drawing.WIDTH
    assert ((pixels == (0, 0, 200)).all(axis=2).sum()) == drawing.COLUMN**2  # the picture as it is, once
    assert (pixels[:120] == drawing._shade(1.0)).all(axis=2).sum() > 500  # "red" as warm as it can be
    assert (pixels[:120] == drawing._shade(-1.0)).all(axis=2).sum() > 500
    with pytest.raises(FileExistsError, match="--force"):
        draw(explained, out)
    assert draw(replace(explained, text="other"), out, force=True) == out


@pytest.mark.parametrize(
    "change",
    [
        {"text": "dog"},
        {"text": "many different words, " * 200},
        {"text": "w" * 500 + " ü “日本”\n\t🐕 \0 <b>"},
        {"text": "…!"},
        {"image": None},
        {"image": b"no picture"},
        {"image": "/no/such/file.png", "boxes": [(0, 0, 1, 1)] * 16},
        {"method": "gradient", "image": Image.new("L", (900, 9))},
        {"shares": [0.0, 0.0, 0.0]},
    ],
)
def test_odd_explanations_are_drawn_and_shown(tmp_path, change):
    grid = (1, 16) if "boxes" in change else (4, 4)
    heats = np.random.default_rng(0).normal(0, 0.1, (20, *grid))
    heats[:, 0, 0] = 0
    explained = made(heats, **change)
    assert Image.open(draw(explained, tmp_path / "why.png")).height < 3200
    seen = Checked(to_html(explained))
    assert explained.text.replace("\0", "") in seen.text.replace("\0", "").replace("\ufffd", "")
    assert len(seen.pictures) == (explained.image is not None and not isinstance(explained.image, (bytes, str)))
    assert f"method {explained.method}" in seen.text and ("need not add up" in seen.text) == (
        explained.method == "gradient"
    )


def test_one_cell_and_a_score_of_zero(tmp_path):
    explained = replace(made([[[-0.25]]]), score=0.0)
    draw(explained, tmp_path / "zero.png")
    assert "S = 0.000 of at most 1" in Checked(to_html(explained)).text
    draw(made([[[0.3]]]), tmp_path / "one.png")


def test_words_stand_at_their_places_in_a_wrapped_sentence():
    explained = made(one_cell(0, 0), text="(the) dog's  house, „blue“")
    pieces = list(drawing._pieces(explained))
    assert [piece.text for piece in pieces] == ["(", "the", ")", "dog", "'", "s", "house", ",", "„", "blue", "“"]
    assert [piece.text for piece in pieces if piece.share is not None] == ["the", "dog", "s", "house", "blue"]
    assert [piece.text for piece in pieces if piece.apart] == ["dog", "house", "„"]


def test_no_picture_is_an_error_of_the_overlay_alone():
    with pytest.raises(ValueError, match="no picture belongs to this explanation"):
        overlay(made(one_cell(0, 0), image=None))
    with pytest.raises(ValueError, match="no such file"):
        overlay(made(one_cell(0, 0), image="/no/such/file.png"))


def test_the_methods_of_an_explanation_are_these():
    explained = made(one_cell(2, 1))
    assert explained.overlay(90).tobytes() == overlay(explained, 90).tobytes()
    assert explained._repr_html_() == to_html(explained)
