"""`avse bench serve` on a small index: every way is measured, and the load asks what it says."""

import json

import numpy as np
from serve_kit import running

from avse.benchmarks.serving import _ask
from avse.cli import main
from avse.cli.bench_serve import _line
from avse.index import Index


def test_rows_of_a_small_run(index, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Index, "open", lambda path, *, model: index)
    small = ["--questions", "4", "--runs", "1", "-k", "2", "--requests", "20", "--batch", "8", "--threads", "1"]
    assert main(["bench", "serve", *small, "--json", "--out-json", str(tmp_path / "kept.json")]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert json.loads((tmp_path / "kept.json").read_text())["rows"] == rows
    assert [row.get("clients") for row in rows] == [1, 8, 32, None]
    for row in rows[:3]:
        assert row["ratio"] == row["batched_rate"] / row["alone_rate"]
        assert 0 < row["batched_p50"] <= row["batched_p95"] <= row["batched_p99"]
    assert rows[0]["p95_over_bare"] == rows[0]["batched_p95"] / rows[0]["bare_p95"] and "bare_p50" not in rows[1]
    assert [target["wanted"] for row in rows for target in row["targets"]] == [
        "p95_over_bare <= 1.3", "ratio >= 1.5", "grown_mib <= 16",
    ]  # fmt: skip
    assert rows[3]["late_mib"] > 10
    first, *ways = _line(rows[0]).splitlines()
    assert first.startswith(f"1 clients: batched is {rows[0]['ratio']:.2f}x each alone (") and len(ways) == 3
    assert f"{rows[0]['bare_rate']:.1f} a second, p50 {rows[0]['bare_p50']:.1f}" in ways[2]
    assert len(_line(rows[1]).splitlines()) == 3 and _line(rows[3]).startswith("memory after ")


def test_the_load_asks_each_sentence_once(index):
    asked = []
    encode = index.encoder.encode_texts
    index.encoder.encode_texts = lambda texts: asked.extend(texts) or encode(texts)
    with running(index) as server:
        found = _ask(server.port, 5, np.random.default_rng(0), 23, 3)
    assert len(asked) == 23 and found["rate"] > 0
