"""`avse bench serve` on a small index: every way is measured, and the load asks what it says."""

import numpy as np
from serve_kit import running

from avse.benchmarks.serving import Sizes, _ask, measure_serving
from avse.serve import Limits


def test_rows_of_a_small_run(index):
    rows = list(measure_serving(index, Sizes(questions=4, runs=1, k=2, requests=20), Limits(batch=8)))
    assert [row.get("clients") for row in rows] == [1, 8, 32, None]
    for row in rows[:3]:
        assert row["ratio"] == row["batched_rate"] / row["alone_rate"]
        assert 0 < row["batched_p50"] <= row["batched_p95"] <= row["batched_p99"]
    assert rows[0]["p95_over_bare"] == rows[0]["batched_p95"] / rows[0]["bare_p95"] and "bare_p50" not in rows[1]
    assert [target["wanted"] for row in rows for target in row["targets"]] == [
        "p95_over_bare <= 1.3", "ratio >= 1.5", "grown_mib <= 16",
    ]  # fmt: skip
    assert rows[3]["late_mib"] > 10


def test_the_load_asks_each_sentence_once(index):
    asked = []
    encode = index.encoder.encode_texts
    index.encoder.encode_texts = lambda texts: asked.extend(texts) or encode(texts)
    with running(index) as server:
        found = _ask(server.port, 5, np.random.default_rng(0), 23, 3)
    assert len(asked) == 23 and found["rate"] > 0
