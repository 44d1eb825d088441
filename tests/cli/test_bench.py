"""`avse bench`: it measures what it says."""

from __future__ import annotations

import pytest
import torch


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
