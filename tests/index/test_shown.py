"""Hits in a notebook: pictures made when asked for, weak ones grey, gone ones named, nothing trusted."""

import copy
import pickle

import pytest
from PIL import Image

from avse.index import Hit
from avse.index.shown import SHOWN, Hits
from html_checks import Checked


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("red.png", (220, 0, 0)), ("blue.png", (0, 0, 220))):
        Image.new("RGB", (600, 300), colour).save(tmp_path / name)
    return tmp_path


def test_a_row_of_thumbnails_in_order_weak_ones_marked(folder):
    hits = [Hit("red.png", 0.9, {}, 0.75, False), Hit("blue.png", 0.3, {}, 0.04, True), Hit("gone.png", 0.2, {})]
    seen = Checked(Hits(hits, lambda hit: folder / hit.id)._repr_html_())
    assert [alt for alt, _ in seen.pictures] == ["red.png", "blue.png"]
    assert [picture.getpixel((9, 9))[0] > 200 for _, picture in seen.pictures] == [True, False]
    assert all(max(picture.size) <= 150 for _, picture in seen.pictures)
    assert seen.having("weak") == 1 and seen.having("gone") == 1 and "no such file: gone.png" in seen.text
    assert "1.  0.900, confidence 75 %" in seen.text and "2.  0.300, confidence 4 %, weak" in seen.text
    assert "3.  0.200gone.png" in seen.text and "no good match" not in seen.text


def test_what_is_no_good_match_says_so_and_names_are_escaped():
    name = "<img src=x onerror=alert(1)>.png"
    weak = Checked(Hits([Hit(name, -0.1, {}, 0.01, True)], lambda hit: None)._repr_html_())
    assert "no good match" in weak.text and f"no picture known: {name}" in weak.text and weak.pictures == []
    assert "no answers" in Checked(Hits()._repr_html_()).text
    sentences = Checked(Hits([Hit("a dog & a <cat>", 0.5, {"text": "…"})])._repr_html_())
    assert "a dog & a <cat>" in sentences.text and sentences.having("gone") == 0
    many = Checked(Hits([Hit(f"{i}", 0.5, {}) for i in range(SHOWN + 5)])._repr_html_())
    assert f"the first {SHOWN} of {SHOWN + 5}" in many.text and many.having("tile") == SHOWN


def test_pictures_are_looked_for_only_when_shown_and_hits_are_a_list():
    def never(hit):
        raise AssertionError("looked for")

    plain = [Hit("a", 1.0, {"n": 1}), Hit("b", 0.5, {})]
    hits = Hits(plain, never)
    assert hits == plain and list(hits) == plain and hits[0] is plain[0] and len(hits) == 2
    for other in (pickle.loads(pickle.dumps(hits)), copy.copy(hits), copy.deepcopy(hits)):
        assert other == plain and "looked" not in other._repr_html_()
    with pytest.raises(AssertionError, match="looked for"):
        hits._repr_html_()


def test_one_hit_shows_its_payload():
    seen = Checked(Hit("a<b", 0.25, {"year": 2019, "title": "<i>x</i>", "paths": ["ü.png"]}, 0.5, True)._repr_html_())
    for part in ("a<b", "0.250, confidence 50 %, weak", "2019", "<i>x</i>", '["ü.png"]'):
        assert part in seen.text


def test_an_index_answers_with_hits_that_show_its_pictures(tmp_path, folder, encoder):
    from avse.index import Index

    with Index.create(tmp_path / "i.avse", encoder, store="memory") as index:
        index.add_images(folder, progress=False)
        hits = index.search(image=folder / "red.png", k=2)
        assert isinstance(hits, Hits)
        seen = Checked(hits._repr_html_())
        assert [alt for alt, _ in seen.pictures] == [hit.id for hit in hits] and len(hits) == 2
