"""`avse bench weak`: the choice of questions by brute force, Wilson's interval, and the whole on made words."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from PIL import Image

from avse.benchmarks.weak import measure_weak, unshared, wilson
from avse.cli import main
from avse.model import AVSE


def test_no_chosen_question_shares_a_word_with_what_stays():
    random = np.random.default_rng(0)
    letters = "abcdefghijklmnop"
    asked = [frozenset(random.choice(list(letters), 2)) for _ in range(9)] + [frozenset()]
    indexed = [frozenset(random.choice(list(letters), 2)) for _ in range(12)]
    for wanted in range(1, 6):
        chosen, kept = unshared(asked, indexed, wanted)
        assert len(chosen) == wanted and 9 not in chosen
        used = frozenset().union(*(asked[i] for i in chosen))
        assert kept == [j for j, words in enumerate(indexed) if not words & used]
        best = max(
            sum(not words & frozenset().union(*(asked[i] for i in some)) for words in indexed)
            for some in itertools.combinations(range(9), wanted)
        )
        assert best - 2 <= len(kept) <= best
    with pytest.raises(ValueError, match="9 test texts have content words; 10 are wanted"):
        unshared(asked, indexed, 10)


def test_wilson_solves_its_equation():
    for hits, count in ((0, 300), (18, 300), (7, 9), (5, 5)):
        low, high = wilson(hits, count)
        for end in (low, high):  # |share - p| = z sqrt(p (1 - p) / n)
            if 0 < end < 1:
                assert abs(hits / count - end) == pytest.approx(1.959964 * np.sqrt(end * (1 - end) / count))
        assert low <= hits / count <= high


@pytest.fixture
def words(tmp_path):
    """Pictures of noise whose captions are made of letters; half of the test texts are in the training captions."""
    random = np.random.default_rng(0)
    lines = []
    (tmp_path / "data").mkdir()
    for split, count in (("train", 30), ("val", 26), ("test", 24)):
        for number in range(count):
            name = f"{split}{number}.png"
            Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / "data" / name)
            first, second = chr(97 + number), "common" if split == "train" and number % 2 else split
            lines.append({"image": name, "captions": [f"{first * 3} {second}{first}"], "split": split})
    (tmp_path / "data" / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "data"


def test_the_index_says_what_the_matrix_says(words, tiny_config, tmp_path, capsys):
    model = AVSE(tiny_config).eval()
    model.save_pretrained(tmp_path / "m")
    row = measure_weak(model, words, wanted=10)
    assert row["questions"] == 10 and row["indexed"] == 20 and row["training_pictures"] == 30
    assert row["calibration"] == "learnt here" and row["learnt_from"] == 26
    assert row["index"]["rate"] == pytest.approx(row["sizes"][-1]["rate"]) and row["sizes"][-1]["gallery"] == 20
    assert row["related"]["gallery"] == 30 and row["test"]["texts"] == 24
    asked = ["bench", "weak", "--model", str(tmp_path / "m"), "--data", str(words), "--questions", "10"]
    capsys.readouterr()
    assert main([*asked, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["indexed"] == 20
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "10 test texts that share no content word with any caption of 20 of the 30 training pictures" in said
    assert "to reach: 2% to 10%" in said
    assert main([*asked[:-1], "25"]) == 1
    assert "24 test texts have content words; 25 are wanted: ask fewer" in capsys.readouterr().err
