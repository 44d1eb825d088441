"""`avse bench`: it measures what it says."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from PIL import Image


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_scoring(avse):
    small = ("bench", "scoring", "--images", 60, "--texts", 300, "--shape", "3,2,8", "--runs", 2)
    said = avse(*small)
    assert said.code == 0 and said.out.count("GFLOP/s") == 2
    rows = avse(*small, "--json").json
    assert [row["shape"] for row in rows] == [[60, 300, 3, 2, 8]] * 2 and rows[1]["ratio"] == 1.0
    assert all(row["seconds"] >= 0 and row["threads"] == 1 for row in rows)


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


def test_options_of_scoring_stand_with_and_without_its_name(avse):
    small = ("--images", 6, "--texts", 7, "--shape", "3,2,8", "--runs", 1)
    for arguments in (("bench", *small, "--json"), ("bench", *small, "--json", "scoring")):
        assert [row["shape"] for row in avse(*arguments).json] == [[6, 7, 3, 2, 8]] * 2


def test_matching(avse, tmp_path):
    plot, rows = tmp_path / "plots" / "matching.png", tmp_path / "matching.json"
    small = ("bench", "matching", "--images", 4, "--texts", 8, "--runs", 1, "--out", plot, "--out-json", rows)
    said = avse(*small)
    assert said.code == 0, said.err
    assert "SCAN, a caption at a time" in said.out and "P·Q·C = V·D²/C: quadratic in D" in said.out
    assert said.out.count("µs a pair") == 7 and said.out.count("exponent") == 3
    with Image.open(plot) as picture:
        assert picture.format == "PNG" and picture.width > 800
    kept = json.loads(rows.read_text())
    assert len(kept["rows"]) == 8 and kept["machine"]["threads"] == 1 and kept["sizes"]["embed_dim"] == 1024
    assert kept["command"] == "avse bench matching --images 4 --texts 8 --runs 1 --threads 1"

    again = avse(*small)
    assert again.code == 1 and f"{rows} exists" in again.err.replace(str(plot), str(rows))
    found = avse("bench", "matching", "--images", 4, "--texts", 8, "--runs", 1, "--json").json
    assert [row["measure"] for row in found] == ["pair"] * 5 + ["growth"] * 3


def test_matching_without_matplotlib_says_the_way_out_before_timing(avse, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = avse("bench", "matching", "--out", tmp_path / "matching.png")
    assert said.code == 1 and "pip install 'avse[plots]'" in said.err and not said.out


def test_an_unknown_kind_is_misuse(avse, capsys):
    with pytest.raises(SystemExit) as stop:
        avse("bench", "speed")
    assert stop.value.code == 2 and "matching" in capsys.readouterr().err
