"""`avse bench`: it measures what it says."""

from __future__ import annotations

import json
import pickle
import sys

import pytest
from PIL import Image

pytestmark = pytest.mark.usefixtures("threads")


SMALL = ("--images", 20, "--texts", 30, "--gallery", 40, "--shape", "3,2,8", "-k", 3, "--batch", 5, "--runs", 1)


@pytest.fixture
def in_this_process(monkeypatch):
    """Measure here what otherwise has processes of its own, to which everything can be sent."""
    from avse.benchmarks import limits, queries, scoring, training

    def call(threads, *call):
        measure, *arguments = pickle.loads(pickle.dumps(call))
        return measure(*arguments)

    for module in (queries, scoring, training):
        monkeypatch.setattr(module, "in_process", call)
    monkeypatch.setattr(training, "keep_freed_memory", lambda: True)
    monkeypatch.setattr(limits, "_WORK", 1.0)
    monkeypatch.setattr(limits, "SHAPES", ((32, 16, 24), (24, 16, 32), (32, 32, 32)))


def test_scoring(avse, tmp_path, in_this_process):
    plot, kept = tmp_path / "plots" / "scoring.png", tmp_path / "scoring.json"
    said = avse("bench", "scoring", *SMALL, "--million", "--out", plot, "--out-json", kept)
    assert said.code == 0, said.err
    heads = [line.split(":")[0] for line in said.out.splitlines() if not line.startswith(" ")]
    ranked = ["top-k, texts ask", "top-k, images ask"]
    assert heads[:-1] == ["matrix", *ranked, "one query", "5 queries", "one query", "ranks"]
    assert "1 used" in heads[-1] and "targets are meant for the sizes of --full" in said.out
    assert said.out.count("target ") == said.out.count("reached") == 12
    with Image.open(plot) as picture:
        assert picture.format == "PNG" and picture.width > 800
    file = json.loads(kept.read_text())
    assert file["machine"]["threads"] == 1 and file["sizes"]["gallery"] == 40 and file["sizes"]["tenfold"]
    assert {row["at"] for row in file["rows"] if row["measure"] == "matrix"} == {"20 x 30, P,Q,C = 3,2,8"}

    again = avse("bench", "scoring", *SMALL, "--out-json", kept)
    assert again.code == 1 and f"{kept} is there already: choose another name or --force" in again.err and not again.out


def test_scoring_of_a_model(avse, run_folder, scenes, in_this_process):
    said = avse(
        "bench", "scoring", *SMALL, "--only", "top-k", "--model", run_folder / "model", "--data", scenes, "--json"
    )
    assert said.code == 0, said.err
    rows = said.json
    assert [row["data"] for row in rows] == ["random"] * 8 + ["model on scenes"] * 8
    assert all(row["at"].startswith("40 x ") and row["error"] < 2e-2 for row in rows[8:])
    alone = avse("bench", "scoring", *SMALL, "--model", run_folder / "model")
    assert alone.code == 1 and "1 --model and 0 --data: each model needs its data set" in alone.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "8,4"], "argument --shape: 8,4: three numbers P,Q,C are wanted"),
        (["--shape", "8,0,4"], "argument --shape: 0: a whole number of at least 1 is wanted"),
        (["--runs", "0"], "argument --runs: 0: a whole number of at least 1 is wanted"),
        (["--threads", "two"], "argument --threads: two: a whole number"),
    ],
)
def test_misuse_names_option_value_and_limit(avse, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        avse("bench", *arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_options_of_scoring_stand_with_and_without_its_name(avse, in_this_process):
    for arguments in ((*SMALL, "--only", "ranks", "--json"), ("--only", "ranks", "--json", "scoring", *SMALL)):
        assert [row["at"] for row in avse("bench", *arguments).json] == ["20 x 30, P,Q,C = 3,2,8"] * 2


def test_matching(avse, tmp_path):
    plot, rows = tmp_path / "plots" / "matching.png", tmp_path / "matching.json"
    small = ("bench", "matching", "--images", 4, "--texts", 8, "--runs", 1, "--out", plot, f"--out-json={rows}")
    said = avse(*small)
    assert said.code == 0, said.err
    assert "SCAN, a caption at a time" in said.out and "P·Q·C = V·D²/C: quadratic in D" in said.out
    assert said.out.count("µs a pair") == 7 and said.out.count("exponent") == 3
    with Image.open(plot) as picture:
        assert picture.format == "PNG" and picture.width > 800
    kept = json.loads(rows.read_text())
    assert len(kept["rows"]) == 8 and kept["machine"]["threads"] == 1 and kept["sizes"]["embed_dim"] == 1024
    assert kept["command"] == "avse bench matching --images 4 --texts 8 --runs 1"

    again = avse(*small)
    told = again.err.replace(str(plot), str(rows))
    assert again.code == 1 and f"{rows} is there already: choose another name or --force" in told
    found = avse("bench", "matching", "--images", 4, "--texts", 8, "--runs", 1, "--json").json
    assert [row["measure"] for row in found] == ["pair"] * 5 + ["growth"] * 3


def test_matching_without_matplotlib_says_the_way_out_before_timing(avse, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = avse("bench", "matching", "--out", tmp_path / "matching.png")
    assert said.code == 1 and 'pip install "avse[plots]"' in said.err and not said.out


def test_train(avse, tmp_path, in_this_process):
    kept = tmp_path / "train.json"
    small = ("bench", "train", "--small", "--images", 2, "--batch", 3, "--chunk", 3, "--large", 5, "--runs", 1)
    said = avse(*small, "--only", "step", "--only", "memory", "--out-json", kept)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert [line for line in lines if not line.startswith(" ")][:2] == ["step: batch 3", "memory: one step, fp32"]
    assert "both views in one encoder call" in said.out and "x the row before" in said.out
    assert "bare encoders 0." in said.out and "batch 5 by chunks of 3" in said.out and "tiny encoders" in lines[-1]
    assert said.out.count("target ") == said.out.count("reached")
    file = json.loads(kept.read_text())
    assert file["command"] == " ".join(map(str, ("avse", *small, "--only step --only memory")))
    assert file["sizes"]["large"] == 5 and file["machine"]["threads"] == 1
    assert [row["measure"] for row in file["rows"]][-3:] == ["memory"] * 3
    again = avse(*small, "--out-json", kept)
    assert again.code == 1 and f"{kept} is there already: choose another name or --force" in again.err and not again.out
    found = avse(*small, "--only", "encode", "--json").json
    assert {row["measure"] for row in found} == {"encode"} and found[1]["error"] <= 1e-5
    alone = avse("bench", "train", "--batch", 1)
    assert alone.code == 2 and "--batch 1: a step needs 2 pairs" in alone.err


def test_an_unknown_kind_is_misuse(avse, capsys):
    with pytest.raises(SystemExit) as stop:
        avse("bench", "speed")
    assert stop.value.code == 2 and "matching" in capsys.readouterr().err
