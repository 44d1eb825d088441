"""Explanations drawn: heat where its cells are and in the frame, nothing below 0 hot, words and files as they are."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from avse.explain import Explanation, Match, Word, drawing
from avse.explain.drawing import draw, overlay, smooth, to_html
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
    with pytest.raises(IsADirectoryError, match="is a folder: name a file in it"):
        draw(explained, tmp_path, force=True)


@pytest.mark.parametrize(
    "change",
    [
        {"text": "dog"},
        {"text": "many different words, " * 200},
        {"text": "w" * 500 + " ü “日本”\n\t🐕 \0 <b>"},
        {"text": "…!"},
        {"text": ""},
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


def scored(score, *parts):
    """An explanation of this S, whose words supplied these parts."""
    explained = made(one_cell(0, 0))
    words = tuple(word._replace(score=part, share=part / score) for word, part in zip(explained.words, parts))
    return replace(explained, score=score, words=words, matches=(Match(0, 0, 0, score, 1.0),))


@pytest.mark.parametrize(
    ("score", "labels"),
    [
        (0.5, ["-20 %", "100 %", "20 %"]),
        (0.25, ["-40 %", "200 %", "40 %"]),
        (0.2, ["-0.100", "+0.500", "+0.100"]),  # a word of more than twice S: 250 % would say nothing
        (0.001, ["-0.100", "+0.500", "+0.100"]),
        (-0.5, ["-0.100", "+0.500", "+0.100"]),
        (-0.001, ["-0.100", "+0.500", "+0.100"]),
    ],
)
def test_shades_go_by_the_parts_sign_whatever_the_score_is(tmp_path, score, labels):
    explained = scored(score, -0.1, 0.5, 0.1)
    seen = Checked(to_html(explained))
    spans = [found for tag, found in seen.tags if tag == "span"]
    assert [span["title"].removesuffix(" of S") for span in spans] == labels
    assert [span["style"].split("(")[2].split(")")[0] for span in spans] == ["--cold", "--hot", "--hot"]
    assert ("100 %" in seen.text) == labels[0].endswith("%")  # the match's share
    pixels = np.asarray(Image.open(draw(explained, tmp_path / "why.png")).convert("RGB"), int)
    for shade, least in ((1.0, 500), (0.2, 200), (-0.2, 200)):
        assert (pixels[:120] == drawing._shade(shade)).all(axis=2).sum() > least
    bar, other = (drawing._shade(0.7 if score > 0 else -0.7), drawing._shade(-0.7 if score > 0 else 0.7))
    assert (pixels[-60:] == bar).all(axis=2).sum() > 2000 and not (pixels[-60:] == other).all(axis=2).any()


def test_long_labels_have_their_own_room(monkeypatch):
    explained = scored(-0.5, -0.1, 0.5, 0.1)
    explained = replace(explained, text="a b c", words=tuple(Word("a", 2 * i, 2 * i + 1, -0.1, 0.2) for i in range(3)))
    written = []
    text = drawing.ImageDraw.ImageDraw.text

    def noted(self, place, words, fill, font, anchor="la"):
        written.append((words, self.textbbox(place, words, font=font, anchor=anchor)))
        text(self, place, words, fill, font, anchor=anchor)

    monkeypatch.setattr(drawing.ImageDraw.ImageDraw, "text", noted)
    drawing._title(explained)
    labels = [box for words, box in written if words == "-0.100"]
    assert len(labels) == 3 and all(left[2] < right[0] for left, right in zip(labels, labels[1:]))


def test_smoothing_is_a_cubic_b_spline_of_the_signed_heat():
    def kernel(x):
        x = abs(x)
        return 2 / 3 - x**2 + x**3 / 2 if x < 1 else max(2 - x, 0) ** 3 / 6

    heat = np.random.default_rng(0).normal(size=(3, 4))
    found = smooth(heat, (20, 9))
    assert found.shape == (9, 20)
    for y in range(9):
        for x in range(20):
            row, column = (y + 0.5) * 3 / 9 - 0.5, (x + 0.5) * 4 / 20 - 0.5
            expected = sum(
                kernel(row - i) * kernel(column - j) * heat[min(max(i, 0), 2), min(max(j, 0), 3)]
                for i in range(-3, 6)
                for j in range(-3, 7)
            )
            assert found[y, x] == pytest.approx(expected, abs=1e-12)


def test_the_hottest_drawn_place_has_the_hottest_colour_and_cold_neighbours_cool():
    heat = one_cell(1, 1)
    explained = made(heat)
    assert drawing._top(explained, heat[0]) == pytest.approx(0.5 * (2 / 3) ** 2, rel=0.02)
    assert drawing._spread(explained, heat[0], (120, 120)).max() == pytest.approx(0.5 * (2 / 3) ** 2, rel=0.01)
    heat[0, 1, 2] = -0.5  # signed: the hot cell's side towards it is colder than the other one
    spread = np.maximum(drawing._spread(explained, heat[0], (120, 120)), 0)
    assert spread[45, 39] > 1.4 * spread[45, 50] > 0 and not spread[45, 60:].any()


def test_the_white_line_is_told_of_where_it_is_drawn(monkeypatch):
    told = []
    text = drawing.ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        drawing.ImageDraw.ImageDraw, "text", lambda *given, **more: told.append(given[2]) or text(*given, **more)
    )
    both = np.full((2, 2, 2), 0.1)
    both[0, 0, 0] = both[1, 1, 1] = 0  # what one view left out another one kept
    for heats, lines in ((both, False), (one_cell(0, 0), True), (np.zeros((1, 2, 2)), False)):
        told.clear()
        side, left = drawing.COLUMN, drawing.MARGIN + drawing.COLUMN + drawing.GUTTER
        strip = drawing._pictures(made(heats), Image.new("RGB", (side, side), (0, 0, 0)), "")
        white = (np.asarray(strip)[drawing.MARGIN :][:side, left : left + side] == 255).all(axis=2)
        assert white.any() == lines and any(words.startswith("white line") for words in told) == lines


def test_words_stand_at_their_places_in_a_wrapped_sentence():
    explained = made(one_cell(0, 0), text="(the) dog's  house, „blue“")
    pieces = list(drawing._pieces(explained))
    assert [piece.text for piece in pieces] == ["(", "the", ")", "dog", "'", "s", "house", ",", "„", "blue", "“"]
    assert [piece.text for piece in pieces if piece.score is not None] == ["the", "dog", "s", "house", "blue"]
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
