"""Every script of examples/ runs as it stands on a tiny model, and says what is true."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import pytest
from pages import ROOT
from PIL import Image

from avse import AVSE, Index

SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
PICTURE = "my-pictures/images/000000.png"


@pytest.fixture
def example(lay_out, monkeypatch, capsys):
    """Run one by its name and return what it printed."""
    lay_out("my-pictures", "runs", "photos.avse")

    def run(name: str, *arguments: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capsys.readouterr()
        runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def naive(sentence: str) -> list[tuple[float, str]]:
    """S of every picture of the folder by loops in float64, best first."""
    model = AVSE.from_pretrained("runs/mine/model")
    [text] = model.encode_texts([sentence]).astype(float)
    found = []
    with Index.open("photos.avse") as index:
        for name in [name for page in index.entries() for name, _ in page]:
            blocks = model.encode_images([f"my-pictures/{name}"])[0].astype(float)
            found.append((sum(max(float(np.dot(v, t)) for v in blocks) for t in text), name))
    return sorted(found, key=lambda one: (-one[0], one[1]))


def test_five_short_scripts():
    assert len(SCRIPTS) == 5
    for path in SCRIPTS:
        assert path.read_text().count("\n") <= 40, f"{path}: an example is a page"


def test_search_folder(example):
    given = ("a small red star", "--pictures", "my-pictures", "--model", "runs/mine/model", "--out", "new.avse")
    first, again = example("search_folder.py", *given), example("search_folder.py", *given)
    assert (first[0], again[0]) == ("40 added, 40 in the index", "0 added, 40 in the index")
    scores = [float(line.split()[0]) for line in again[1:-1]]
    assert scores == pytest.approx([score for score, _ in naive(given[0])[:10]], abs=6e-4)
    assert Image.open(again[-1]).width > 500


def test_rank_in_duckdb_is_the_sum_of_maxima(example):
    printed = [line.split() for line in example("rank_in_duckdb.py", "a blue ring", "--index", "photos.avse")]
    truth = dict((name, score) for score, name in naive("a blue ring"))
    assert [float(score) for score, _ in printed] == pytest.approx(sorted(truth.values())[::-1][:10], abs=6e-4)
    assert all(float(score) == pytest.approx(truth[name], abs=6e-4) for score, name in printed)


def test_explain_picture(example):
    printed = example("explain_picture.py", PICTURE, "a small red star", "--model", "runs/mine/model")
    matches = [float(line.rsplit(", ")[1]) for line in printed if line.startswith("text block")]
    score = float(printed[0].split()[2].rstrip(","))
    assert sum(matches) == pytest.approx(score, abs=2e-3) and score == pytest.approx(
        dict((name, score) for score, name in naive("a small red star"))["images/000000.png"], abs=6e-4
    )
    assert {line.split()[-1] for line in printed[-5:-1]} == {"a", "small", "red", "star"}
    assert Image.open(printed[-1]).width > 500


def test_fine_tune_then_compare(example):
    last = example("fine_tune.py", "my-pictures", "--model", "runs/mine/model", "--epochs", "1")[-1]
    before, after = (float(last.split()[place]) for place in (2, 4))
    told = example("compare_models.py", "runs/further/model", "runs/mine/model", "my-pictures")[-1]
    assert float(told.split(": ")[1].split()[0]) == pytest.approx(after - before, abs=0.11)
