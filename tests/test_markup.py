"""HTML: escaped, well-formed, light; charts as long as their values."""

import subprocess
import sys

import pytest
from PIL import Image

from avse import markup
from avse.images import read_image
from html_checks import Checked

NASTY = """<script>alert("1")</script> & 'x' </td> “ü”"""


def test_all_text_is_escaped_wherever_it_stands():
    parts = [
        markup.element("p", NASTY, title=NASTY),
        markup.table([NASTY, "b"], [[NASTY, NASTY], ["a", 2]], NASTY),
        markup.shaded(NASTY, [(0, 8, 0.5, NASTY), (9, 12, -0.2, "")]),
        markup.picture(Image.new("RGB", (4, 3)), NASTY),
        markup.thumbnail(lambda: read_image("/no/such/file.png"), NASTY),
        markup.bars([NASTY, "b"], {NASTY: [1.0, 2.0]}, NASTY, "%"),
        markup.curve([(0.1, 0.2), (0.9, 0.8)], NASTY, NASTY, NASTY),
    ]
    for whole in (markup.page(NASTY, NASTY, *parts), markup.fragment(NASTY, *parts)):
        seen = Checked(whole)
        assert whole.count("<script>") == 0 and seen.text.count(NASTY) >= 8
        assert seen.pictures[0][0] == NASTY and seen.pictures[0][1].size == (4, 3)
        assert f"no such file: {NASTY}" in seen.text
    assert "<title>&lt;script" in markup.page(NASTY)


def test_html_is_not_escaped_twice_and_joined_text_is_html():
    inner = markup.element("b", "1 < 2")
    assert inner == "<b>1 &lt; 2</b>" and markup.element("p", inner) == "<p><b>1 &lt; 2</b></p>"
    assert isinstance(markup.join(["<", inner]), markup.Html) and markup.join(["<", inner]) == f"&lt;{inner}"
    assert type(markup.escape(7)) is markup.Html


def test_thumbnails_are_small_and_leave_their_source_alone():
    source = Image.new("RGB", (400, 100), (200, 0, 0))
    seen = Checked(markup.thumbnail(lambda: source, "wide", 80))
    [(_, small)] = seen.pictures
    assert small.size == (80, 20) and source.size == (400, 100)
    assert abs(small.getpixel((40, 10))[0] - 200) < 4
    tile = Checked(markup.thumbnail(lambda: read_image(b"no picture"), "odd"))
    assert tile.pictures == [] and ": odd" in tile.text and tile.having("gone") == 1


def test_words_keep_their_places_and_shade_by_sign_and_size():
    text = "a red dog, sad"
    html = markup.shaded(text, [(6, 9, 0.5, "50 %"), (2, 5, 0.25, "25 %"), (11, 14, -0.5, "-50 %")])
    seen = Checked(html)
    assert seen.text == text
    styles = [found["style"] for tag, found in seen.tags if tag == "span"]
    assert [style.split("(")[2].split(")")[0] for style in styles] == ["--hot", "--hot", "--cold"]
    assert [float(style.rstrip(")").split()[-1]) for style in styles] == pytest.approx([0.325, 0.65, 0.65], abs=0.006)
    assert [found["title"] for tag, found in seen.tags if tag == "span"] == ["25 %", "50 %", "-50 %"]
    assert Checked(markup.shaded("nothing known", [])).text == "nothing known"
    assert Checked(markup.shaded("ab", [(0, 1, 0.0, ""), (1, 2, 0.0, "")])).text == "ab"


@pytest.mark.parametrize("top", [0.0, 0.03, 1.0, 19.9, 20.0, 99.0, 100.0])
def test_bars_are_as_high_as_their_values(top):
    seen = Checked(markup.bars(["a", "b"], {"x": [top, top / 2], "y": [0.0, top / 4]}, "t", "%"))
    rects = [found for tag, found in seen.tags if tag == "rect"]
    heights = [float(found["height"]) for found in rects if found["height"] != "12"]
    assert heights[1] == pytest.approx(heights[0] / 2, abs=0.11) and heights[2] == 0
    assert heights[3] == pytest.approx(heights[0] / 4, abs=0.11)
    assert all(0 <= float(found["y"]) and float(found["x"]) >= 0 for found in rects)


def test_a_curve_runs_through_its_points():
    seen = Checked(markup.curve([(0.0, 0.0), (0.5, 0.25), (1.0, 1.0)], "t", "confidence", "right"))
    lines = [found["points"].split() for tag, found in seen.tags if tag == "polyline"]
    diagonal, drawn = [[tuple(map(float, point.split(","))) for point in line] for line in lines]
    assert [drawn[0], drawn[2]] == diagonal
    (x0, y0), (x1, y1), (x2, y2) = drawn
    assert x1 - x0 == pytest.approx((x2 - x0) / 2, abs=0.11) and y1 - y0 == pytest.approx((y2 - y0) / 4, abs=0.11)


def test_markup_and_metrics_load_no_pillow():
    code = "import sys, avse.markup, avse.metrics; assert not {'PIL', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
