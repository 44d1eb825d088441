"""What `avse bench soak` and `export` say and end with, over rows that are given: the measuring has its own tests."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("threads")


@pytest.mark.parametrize(("grows", "code"), [(0.0, 0), (2.0, 1)])
def test_a_soak_ends_with_1_where_something_grows(avse, monkeypatch, tmp_path, grows, code):
    from avse.benchmarks.soak import Turn

    def turns(seconds, *, model, store):
        assert (seconds, model, store) == (60, "a model", "memory")
        for n in range(60):
            yield Turn(float(n + 1), 64, 100.0 + grows * n, 8, 1.5, n / 10)

    monkeypatch.setattr("avse.benchmarks.soak.soak", turns)
    asked = ("bench", "soak", "--seconds", 60, "--model", "a model", "--store", "memory")
    said = avse(*asked, "--out-json", tmp_path / "soak.json")
    lines = said.out.splitlines()
    assert (
        said.code == code
        and lines[0] == "     1 s: 64 entries, 100 MiB resident, 8 handles, 1.50 MiB on the disk, the engine's log 0.0"
    )
    assert (
        10 <= len(lines) <= 13
        and "log at most 5.9 MiB" in said.out
        and ("NOT flat" in said.out) == bool(code)
        and "handles at most 8, then 8" in said.out
    )
    kept = json.loads((tmp_path / "soak.json").read_text())
    assert (
        kept["command"] == "avse bench soak --seconds 60 --model 'a model' --store memory"
        and kept["machine"]["threads"] == 1
    )
    assert kept["rows"][0]["flat"] is not bool(code) and len(kept["rows"]) == 61
    assert kept["kept"] == "the verdict, then every 1. turn"
    told = avse(*asked, "--json").json
    assert told[0] == kept["rows"][1] and told[-1] == kept["rows"][0]


def test_the_export_table(avse, monkeypatch, tmp_path):
    sizes = {"difference": 3.5e-7, "bytes": 4_200_000, "seconds": 0.0123}
    rows = [
        {"format": "onnx", "what": "both encoders", "note": None, **sizes},
        {"format": "qdrant", "what": "a collection", "note": "qdrant_client is not installed"},
    ]

    def measure(model, index, sentences, *, k, runs):
        assert (model, index, sentences, k, runs) == ("model of m", "i", ["a dog", "a cat"], 3, 2)
        return rows

    monkeypatch.setattr("avse.benchmarks.exporting.measure_exports", measure)
    monkeypatch.setattr("avse.start.open_model", lambda folder: f"model of {folder}")
    (tmp_path / "asked.txt").write_text("a dog\n\n a cat\n")
    asked = ("bench", "export", "m", "--index", "i", "-k", 3, "--runs", 2, "--sentences")
    said = avse(*asked, tmp_path / "asked.txt")
    head, one, other, *_ = said.out.splitlines()
    assert head.split() == ["format", "what", "it", "holds", "largest", "difference", "MB", "ms", "a", "query"]
    assert one.split() == ["onnx", "both", "encoders", "3.5e-07", "4.2", "12.3"] and len(one) == len(head)
    assert other.endswith("left out: qdrant_client is not installed")
    assert avse(*asked, tmp_path / "asked.txt", "--json").json == rows
    (tmp_path / "asked.txt").write_text("\n \n")
    assert "holds no sentence: write one a line" in avse(*asked, tmp_path / "asked.txt").err
