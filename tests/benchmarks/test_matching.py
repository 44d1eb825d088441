"""The cost of a pair: the rows say what was timed, exponents are fitted right, disagreement is an error."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from avse import benchmarks
from avse.benchmarks import matching, scan
from avse.benchmarks.matching import Sizes, exponent, measure_matching

SMALL = Sizes(
    images=8,
    texts=10,
    embed_dim=16,
    block_width=8,
    regions=5,
    words=3,
    scan_batch=(8, 4),
    widths=(4, 8),
    dims=(8, 16),
    gallery=(8, 16),
    queries=3,
)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_exponent_of_known_curves():
    assert exponent([(2, 3.0), (4, 6.0), (8, 12.0)]) == pytest.approx(1.0)
    assert exponent([(n, 5.0 * n**1.5) for n in (100, 200, 500)]) == pytest.approx(1.5)
    # Least squares over three points by hand: in log2, x = 0, 1, 2 and y = 0, 2, 3 have the slope 3/2.
    assert exponent([(1, 1.0), (2, 4.0), (4, 8.0)]) == pytest.approx(1.5)


def test_ways_take_turns_and_the_median_counts(monkeypatch):
    now, order, waits = [0.0], [], iter([9.0, 3.0, 1.0, 2.5])
    monkeypatch.setattr(benchmarks, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def slow():
        order.append("slow")
        now[0] += next(waits)

    found = benchmarks.interleaved({"slow": slow, "other": lambda: order.append("other")}, runs=3)
    assert order == ["slow", "other"] * 4
    assert found == {"slow": 2.5, "other": 0.0}  # the first turn, of 9, is not counted


def test_rows_of_known_times(monkeypatch):
    """Each way takes as many seconds as its place: what a row holds can be told by hand."""
    monkeypatch.setattr(matching, "interleaved", lambda ways, *_, **__: {key: i + 1.0 for i, key in enumerate(ways)})
    rows = measure_matching(SMALL, runs=1)
    pairs, growth = rows[:5], rows[5:]
    assert [row["way"] for row in pairs[:3]] == ["cosine, width V·D", "AEOM", "SCAN, a caption at a time"]
    assert pairs[0]["us_per_pair"] == 1e6 / 80 and pairs[1]["us_per_pair"] == 2e6 / 80
    assert pairs[2]["us_per_pair"] == 3e6 / 32 and pairs[1]["against_cosine"] == 2.0
    assert pairs[2]["against_aeom"] == (3 / 32) / (2 / 80)
    assert [(row["over"], row["at"]) for row in growth] == [
        ("C", "P,Q = 4,2"),
        ("D", "C = 8, V = 2"),
        ("gallery", "P,Q,C = 4,2,8, 3 queries at a time"),
    ]
    assert growth[0]["points"] == [[4, 6e6 / 80], [8, 7e6 / 80]]
    assert growth[0]["exponent"] == round(math.log2(7 / 6), 3)
    assert growth[2]["points"] == [[8, round(10e6 / 3, 4)], [16, round(11e6 / 3, 4)]]  # a query over the whole gallery
    assert "V·D²/C" in growth[1]["why"]


def test_it_runs_and_every_cost_is_a_time():
    rows = measure_matching(SMALL, runs=2)
    assert len(rows) == 8 and all(row["us_per_pair"] > 0 for row in rows[:5])
    assert all(value > 0 for row in rows[5:] for _, value in row["points"])


def test_a_way_that_is_wrong_is_not_timed(monkeypatch):
    right = scan.scan_by_gram
    monkeypatch.setattr(scan, "scan_by_gram", lambda regions, words: right(regions, words) + 1e-3)
    with pytest.raises(RuntimeError, match=r"Gram.* differs from float64 by 1\.0e-03, more than 2e-05"):
        measure_matching(SMALL, runs=1)


def test_the_machine_is_described():
    found = benchmarks.machine()
    assert found["torch"] == torch.__version__ and found["cores"] >= 1 and found["processor"]
