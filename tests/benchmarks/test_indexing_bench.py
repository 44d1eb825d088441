"""`avse bench index`: rows that can be told by hand, pictures by their numbers, a wrong store is not timed."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from avse.benchmarks import indexing, stores
from avse.benchmarks.indexing import Sizes, make_pictures, measure_indexing
from avse.cli import main
from avse.index import Hit


@pytest.fixture
def model(tmp_path, tiny_config):
    from avse.model import AVSE

    return AVSE(tiny_config).save_pretrained(tmp_path / "model")


def test_pictures_are_told_by_number_and_size(tmp_path):
    make_pictures(tmp_path / "a", 3, (40, 30), threads=2)
    make_pictures(tmp_path / "b", 2, (40, 30))
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["000000.jpg", "000001.jpg", "000002.jpg"]
    first, second = ((tmp_path / folder / names[1]).read_bytes() for folder in "ab")
    assert first == second != (tmp_path / "a" / names[2]).read_bytes()
    with Image.open(tmp_path / "a" / names[0]) as image:
        assert image.size == (40, 30) and image.format == "JPEG" and np.asarray(image).std() > 10


def test_a_picture_packs_like_a_photograph(tmp_path):
    make_pictures(tmp_path / "a", 1, indexing.SMALL)
    assert 30_000 < (tmp_path / "a" / "000000.jpg").stat().st_size < 90_000


def test_rows_of_known_times(tmp_path, monkeypatch):
    """40 pictures in 2, 4 and 3 s, stages of 10 + 20 + 5 + 1 ms in the median."""
    make_pictures(tmp_path / "own", 40, (20, 10))
    seconds = iter([2.0, 4.0, 3.0, 9.0])

    def told(threads, measure, *arguments):
        if measure is indexing._stages:
            assert threads == 1
            return {"decode": 0.01, "encode": 0.02, "head": 0.005, "store": 0.001}
        assert threads == 2
        n = arguments[1]
        return {"seconds": next(seconds), "cpu": 4.0, "peak": (1000 + n) * 2**20, "readers": 50 * 2**20}

    monkeypatch.setattr(indexing, "in_process", told)
    *alone, row = measure_indexing(Sizes(runs=3), folder=tmp_path / "own", model="m", threads=2)
    assert [(stage["stage"], stage["cpu_ms"]) for stage in alone] == [
        ("decode", 10.0),
        ("encode", 20.0),
        ("head", 5.0),
        ("store", 1.0),
    ]
    assert (row["n"], row["seconds"], row["per_second"], row["sum_ms"]) == (40, 3.0, 13.3, 36.0)
    assert (row["of_sum"], row["of_cores"], row["cpu_ms"]) == (0.48, 0.24, 100.0)
    assert (row["peak_mib"], row["half_peak_mib"], row["readers_mib"]) == (1040, 1020, 50)


def test_too_few_pictures(tmp_path):
    make_pictures(tmp_path / "own", 1, (20, 10))
    with pytest.raises(ValueError, match="own: 1 pictures, at least 2 are wanted"):
        list(measure_indexing(folder=tmp_path / "own", model="m"))


def test_what_is_measured_is_the_whole_job(tmp_path, model):
    make_pictures(tmp_path / "own", 4, (90, 60))
    found = indexing._index(tmp_path / "own", 4, str(model))
    assert found["seconds"] > 0 and found["cpu"] > 0 and found["peak"] > 2**20
    stages = indexing._stages(tmp_path / "own", str(model), 3)
    assert list(stages) == list(indexing.STAGES) and all(seconds > 0 for seconds in stages.values())
    (tmp_path / "own" / "cut.jpg").write_bytes(b"no picture")
    with pytest.raises(RuntimeError, match="4 of 5 pictures were indexed, 1 set aside"):
        indexing._index(tmp_path / "own", 5, str(model))


def test_every_store_is_asked_and_right():
    rows = stores._measure(60, (3, 2, 4), 5, 2, 1)
    assert [(row["store"], row["where"]) for row in rows] == [
        ("embedded", "digit = 3"),
        ("embedded", None),
        ("memory", "digit = 3"),
        ("memory", None),
    ]
    assert all(row["seconds"] > 0 and row["error"] <= 1e-5 and row["entries"] == 60 for row in rows)


def test_the_truth_of_the_stores_is_the_definition():
    random = np.random.default_rng(0)
    images, texts = random.standard_normal((4, 3, 5)), random.standard_normal((2, 2, 5))
    expected = [[sum(max(v @ t for v in image) for t in text) for image in images] for text in texts]
    np.testing.assert_allclose(stores._truth(images.astype(np.float32), texts.astype(np.float32)), expected, atol=1e-5)


def test_a_store_that_is_wrong_is_not_timed():
    truth = np.array([[0.1 * number for number in range(20)]])
    best = [Hit("13", 1.3, {}), Hit("3", 0.3, {})]
    assert stores._check("x", [best], truth, stores.WHERE, 2) < 1e-15
    with pytest.raises(RuntimeError, match=r"x differs from float64 by 1\.0e-03, more than 1e-05"):
        stores._check("x", [[Hit("13", 1.301, {}), best[1]]], truth, stores.WHERE, 2)
    for wrong in ([best[0]], [best[0], best[0]], [Hit("19", 1.9, {}), best[0]]):
        with pytest.raises(RuntimeError, match="2 were expected"):
            stores._check("x", [wrong], truth, stores.WHERE, 2)


@pytest.mark.slow
def test_the_command_prints_and_writes(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setattr(indexing, "LARGE", (120, 90))
    out = tmp_path / "index.json"
    command = ["bench", "index", "--model", str(model), "--count", "3", "--large", "2", "--runs", "1", "--threads", "1"]
    assert main([*command, "--entries", "30", "--shape", "2,2,4", "--out-json", str(out)]) == 0
    printed = capsys.readouterr().out
    assert (
        "500 x 375 px: 3 indexed in" in printed and "120 x 90 px: 2 indexed" in printed and "memory   store" in printed
    )
    rows = json.loads(out.read_text())["rows"]
    assert [row["measure"] for row in rows] == [*(["stage"] * 4 + ["index"]) * 2, *["store"] * 4]
    assert main([*command, "--out-json", str(out)]) == 1


@pytest.fixture(autouse=True)
def environment():
    """What the command line sets for a process is not for the other tests."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_a_small_graph_finds_what_the_scan_finds(monkeypatch):
    monkeypatch.setattr(stores, "in_process", lambda threads, call, *arguments: call(*arguments))
    monkeypatch.setattr(stores, "_ASKED", 4)
    monkeypatch.setattr(stores, "_PART", 50)
    [row] = stores.measure_graph(120, (2, 1, 8), k=3, runs=1)
    assert (row["measure"], row["entries"], row["shape"], row["k"]) == ("graph", 120, [2, 1, 8], 3)
    assert row["recall"] == 1.0 and row["seconds"] > 0 and row["exact_seconds"] > 0  # too few for a graph: all is read
