"""`avse bench explain`: its measures on heats made by hand, and the whole of it on a small model."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from avse.benchmarks import explaining
from avse.benchmarks.explaining import measure_deletion, measure_pointing, measure_words
from avse.cli import main
from avse.data import load_dataset
from avse.data.scenes import make_scenes
from avse.explain import Word
from avse.model import AVSE


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    make_scenes(folder, 24, 64)
    return folder


@pytest.fixture(scope="module")
def model(tiny_config):
    torch.manual_seed(0)
    return AVSE(tiny_config).eval()


def test_a_heat_against_a_box():
    heat = np.array([[1.0, -5.0], [3.0, 0.0]])
    hit, energy = explaining._against_box(heat, (0.1, 0.5, 0.5, 1.0))  # four fifths of the hottest cell
    assert hit == 1 and energy == pytest.approx(0.8 * 3 / 4)
    assert explaining._against_box(heat, (0.26, 0.0, 1.0, 1.0))[0] == 0  # the cell's centre is not in the box
    assert explaining._against_box(heat, (0.0, 0.0, 1.0, 1.0)) == (1.0, pytest.approx(1.0))
    assert explaining._against_box(np.zeros((2, 2)), (0.4, 0.4, 0.6, 0.6)) == (1.0, 0.0)  # no heat points at the centre


def test_areas():
    assert explaining._area([1.0, 0.0], np.array([0.0, 1.0])) == pytest.approx(0.5)
    assert explaining._area([2.0, 2.0, 0.0], np.array([0.0, 0.75, 1.0])) == pytest.approx(1.75)


def test_pictures_are_drawn_again_with_all_their_captions():
    owners = np.array([0, 0, 0, 1])
    means = explaining._resampled(np.array([1.0, 1.0, 1.0, 0.0]), owners)
    assert set(np.round(means, 6)) == {0.0, 0.75, 1.0}  # both once, or one of them twice


def test_a_heat_that_knows_the_parts_is_found_better(model, scenes, monkeypatch):
    data = load_dataset(scenes, split="test")
    boxes = {part["caption"]: part["box"] for record in data.records for part in record["parts"]}

    def knows(model, tokens, text, *, centred=True):
        x0, y0, x1, y1 = (place / 64 * 4 for place in boxes[text])
        cells = np.arange(16)
        away = np.hypot(cells % 4 + 0.5 - (x0 + x1) / 2, cells // 4 + 0.5 - (y0 + y1) / 2)
        return type("Split", (), {"tokens": np.concatenate([[9.0], np.exp(-3 * away)])[None]})

    monkeypatch.setattr(explaining, "split_score", knows)
    rows = {row["way"]: row for row in measure_pointing(model, data, pictures=4, gradients=1)}
    ours, prior = rows["explanation"], rows["centre prior"]
    assert ours["captions"] == data.first_by_hash(4).num_pairs == prior["captions"]
    assert ours["point"] > 2 * prior["point"] and ours["energy"] > prior["energy"]
    assert prior["point_behind"] == pytest.approx(ours["point"] - prior["point"])
    assert [target["reached"] for target in prior["targets"]] == [True, True]
    assert rows["gradient x input, pixels"]["pictures"] == 1 and rows["gradient x input, tokens"]["pictures"] == 4


def test_deletion_falls_where_the_score_hangs_on_the_hottest_cell(model, scenes, monkeypatch):
    data = load_dataset(scenes, split="test")

    def darkness(pixels):  # a model that sees the first cell alone
        return pixels[:, :, :8, :8].std(axis=(1, 2, 3))[:, None, None]

    monkeypatch.setattr(model, "encode_pixels", darkness)
    monkeypatch.setattr(model, "encode_texts", lambda texts: np.ones((1, 1, 1)))
    monkeypatch.setattr(model, "similarity", lambda images, texts: images[:, :, 0])
    knows = {"explanation": np.eye(1, 16).reshape(4, 4), "centre prior": np.zeros((4, 4))}
    monkeypatch.setattr(explaining, "_heats", lambda *_: dict(knows))
    rows = {row["way"]: row for row in measure_deletion(model, data, pictures=4)}
    ours = rows["explanation"]
    assert ours["deletion"] < rows["random"]["deletion"] and ours["insertion"] > rows["random"]["insertion"]
    assert ours["deletion_less"] == pytest.approx(ours["deletion"] - rows["random"]["deletion"])
    assert rows["random"]["deletion_ci"] == [0, 0]


def test_words_that_count_are_left_out_first(model, scenes, monkeypatch):
    data = load_dataset(scenes, split="test").first_by_hash(3)
    count = {"n": 0}

    def reads(texts):  # a model that reads the last word of each caption alone
        last = texts[0].split()[-1]
        count["n"] += len(texts)
        return np.array([[[float(text.split()[-1:] == [last])]] for text in texts])

    def explained(model, path, text):
        words, last = text.split(), len(text.split()) - 1
        made = [Word(word, 0, 0, float(place == last), 0.0) for place, word in enumerate(words)]
        return type("Explanation", (), {"words": made})

    monkeypatch.setattr(model, "encode_images", lambda images: np.ones((1, 1, 1)))
    monkeypatch.setattr(model, "encode_texts", reads)
    monkeypatch.setattr(model, "similarity", lambda images, texts: texts[:, :, 0].T)
    monkeypatch.setattr(explaining, "explain", explained)
    rows = {row["way"]: row for row in measure_words(model, data, pictures=3)}
    lengths = [len(data.captions_of(row)[0].split()) for row in range(3)]
    assert rows["explanation"]["words"] == pytest.approx(np.mean([0.5 / length for length in lengths]))
    assert rows["explanation"]["words"] < rows["random"]["words"]
    assert count["n"] == sum(3 * (length + 1) for length in lengths)


def test_one_word_says_nothing(model, scenes):
    data = load_dataset(scenes, split="test").first_by_hash(2)
    short = replace(data, captions=tuple("" if i % 2 else "dog" for i in range(len(data.captions))))
    with pytest.raises(ValueError, match=r"none of 2 captions has two words to leave out.*--words 0"):
        list(measure_words(model, short, pictures=2))


def test_no_boxes_no_game(model, scenes):
    data = load_dataset(scenes, split="test")
    stripped = replace(data, records=tuple({"split": "test"} for _ in data.records))
    with pytest.raises(ValueError, match="no boxes are known"):
        list(measure_pointing(model, stripped, pictures=2, gradients=0))


def test_the_command(model, scenes, tmp_path, capsys):
    folder = model.save_pretrained(tmp_path / "model")
    places = ["--scenes-model", str(folder), "--scenes", str(scenes), "--model", str(folder), "--data", str(scenes)]
    sizes = ["--pointing", "3", "--gradients", "1", "--deletion", "3", "--words", "3", "--threads", "1"]
    assert main(["bench", "explain", *places, *sizes, "--out-json", str(tmp_path / "rows.json")]) == 0
    told = capsys.readouterr().out
    for words in ("pointing:", "deletion:", "centre prior", "gradient x input, pixels", "target", "bootstrap"):
        assert words in told
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert {row["measure"] for row in rows} == {"pointing", "deletion", "words"}
    assert main(["bench", "explain", *places, *sizes, "--json"]) == 0
    assert [json.loads(line)["way"] for line in capsys.readouterr().out.splitlines()] == [row["way"] for row in rows]
    assert main(["bench", "explain", "--scenes", str(scenes), "--scenes-model", "no/model"]) == 1
    assert "`avse demo --scenes --out runs/scenes` makes them" in capsys.readouterr().err
