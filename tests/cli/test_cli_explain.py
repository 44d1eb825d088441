"""`avse explain`: by index and by model, the same parts that make the score, and what is refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from avse.model import AVSE


@pytest.fixture(scope="module")
def place(tmp_path_factory, run_folder, scenes):
    """An index of the scenes, with its pictures and model beside it."""
    from avse.cli import main

    folder = tmp_path_factory.mktemp("explain")
    shutil.copytree(scenes / "images", folder / "pictures")
    index, model = folder / "i.avse", run_folder / "model"
    assert main(["index", str(folder / "pictures"), "--out", str(index), "--model", str(model), "--json"]) == 0
    return folder


def names(place) -> list[str]:
    return sorted(path.name for path in (place / "pictures").iterdir())


def test_an_id_a_file_and_a_model_give_one_answer_that_adds_up(avse, run_folder, place):
    name, sentence = names(place)[3], "a red circle above a blue square"
    file, model = place / "pictures" / name, run_folder / "model"
    said = [
        avse("explain", place / "i.avse", name, sentence, "--device", "cpu", "--json"),
        avse("explain", place / "i.avse", file, sentence, "--device", "cpu", "--json"),
        avse("explain", model, file, sentence, "--device", "cpu", "--json"),
        avse("explain", place / "i.avse", name, sentence, "--model", model, "--device", "cpu", "--json"),
    ]
    assert [one.code for one in said] == [0, 0, 0, 0], said[0].err
    first, *others = [one.json[0] for one in said]
    for other in others:
        assert {**other, "image": name} == first
    loaded = AVSE.from_pretrained(model)
    score = float(loaded.similarity(loaded.encode_images([file]), loaded.encode_texts([sentence]))[0, 0])
    assert first["score"] == pytest.approx(score, abs=1e-5) and first["upper"] == loaded.num_text_blocks
    assert sum(match["score"] for match in first["matches"]) == pytest.approx(score, abs=1e-5)
    assert np.sum(first["heat"]) + first["beyond"] == pytest.approx(score, abs=1e-4)
    assert sum(word["score"] for word in first["words"]) + first["beside"] == pytest.approx(score, abs=1e-4)
    assert [sentence[word["start"] : word["end"]] for word in first["words"]] == sentence.split()


def test_the_table_holds_matches_and_words_and_the_picture_is_drawn_once(avse, place, tmp_path):
    out = tmp_path / "why.png"
    asked = ("explain", place / "i.avse", names(place)[0], "a red star", "--out", out)
    said = avse(*asked)
    assert said.code == 0 and said.lines == [f"explanation in {out}"]
    assert said.out.startswith("S = ") and "A_ij" in said.out
    for word in ("a", "red", "star", "(beside the words)", "(beyond the cells)"):
        assert any(line.startswith(f"{word} ") for line in said.out.splitlines()), word
    with Image.open(out) as drawn:
        assert drawn.format == "PNG" and drawn.width > 1000
    before = out.read_bytes()
    refused = avse(*asked)
    assert refused.code == 1 and "--force" in refused.lines[0] and refused.out == "" and out.read_bytes() == before
    assert avse(*asked, "--force").code == 0
    folder = avse("explain", tmp_path / "nowhere", "no picture", "a dog", "--out", tmp_path, "--force")  # before work
    assert folder.code == 1 and folder.lines == [f"avse explain: {tmp_path} is a folder: name a file in it"]


def test_the_table_gives_no_shares_of_a_score_below_zero():
    from avse.cli.explain import _table
    from avse.explain import Explanation, Match, Word

    heats = np.zeros((1, 1, 1), np.float32)
    for score in (-0.5, 0.5):
        match, word = Match(0, 0, 0, score, 1.0), Word("dog", 0, 3, 0.1, 0.1 / score)
        parts = (match,), (1, 1), heats, score, (word,), score - 0.1
        said = _table(Explanation("dog", score, *parts, (0, 0, 1, 1), None, "exact", None))
        assert ("share" in said) == (" 20.0%" in said) == ("%" in said) == (score > 0) and f"{score:.4f}" in said


def test_what_cannot_be_explained_is_said_in_one_line(avse, run_folder, place, scenes, tmp_path):
    index, model, name = place / "i.avse", run_folder / "model", names(place)[0]

    def fails(*arguments, code=1):
        said = avse("explain", *arguments)
        assert said.code == code and said.out == "" and len(said.lines) == 1, said.err
        return said.lines[0]

    assert "the sentence is empty" in fails(index, name, "  ")
    assert f"did you mean {name!r}?" in fails(index, name[:-1], "a dog")
    assert "nor a file; did you mean" in fails(index, "qqqqqqq", "a dog")
    assert "no such file" in fails(model, name, "a dog")
    assert "leave it out" in fails(model, place / "pictures" / name, "a dog", "--model", model, code=2)
    assert "nowhere" in fails(tmp_path / "nowhere", place / "pictures" / name, "a dog")
    (tmp_path / "cut.png").write_bytes((place / "pictures" / name).read_bytes()[:80])
    assert "cut.png" in fails(model, tmp_path / "cut.png", "a dog")
    assert "not usable here" in fails(index, name, "a dog", "--device", "warp")
    (tmp_path / "lines.txt").write_text("a dog\na boat\n")
    assert avse("index", tmp_path / "lines.txt", "--out", tmp_path / "t.avse", "--model", model, "--json").code == 0
    assert "is an index of texts" in fails(tmp_path / "t.avse", "a dog", "a dog")


def test_a_picture_that_left_its_place_is_named(avse, run_folder, place, tmp_path):
    shutil.copytree(place, tmp_path / "copy")
    name = names(place)[5]
    (tmp_path / "copy" / "pictures" / name).unlink()
    said = avse("explain", tmp_path / "copy" / "i.avse", name, "a dog", "--model", run_folder / "model")
    assert said.code == 1 and said.out == "" and f"{name}: no such file" in said.lines[0]


@pytest.mark.parametrize("name", ["clip", "siglip2"])
def test_a_pair_as_it_is_explains_by_gradient(avse, pair_folders, place, tmp_path, name):
    picture = place / "pictures" / names(place)[0]
    said = avse("explain", pair_folders[name], picture, "a dog", "--json", "--out", tmp_path / "why.png")
    assert said.code == 0, said.err
    assert said.json[0]["method"] == "gradient" and [word["word"] for word in said.json[0]["words"]] == ["a", "dog"]
    assert (tmp_path / "why.png").is_file()
