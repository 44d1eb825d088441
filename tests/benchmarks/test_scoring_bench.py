"""The benchmark of scoring: every way against naive loops, and every row whole, at sizes of a moment."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from avse.benchmarks import agreement, limits, queries, rivals, scoring, units
from avse.benchmarks.rows import FIELDS
from avse.benchmarks.scoring import Sizes

SIZES = Sizes(images=20, texts=30, shape=(3, 2, 16), gallery=40, batch=5, k=4)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    """Call what is otherwise measured in processes of their own."""
    for module in (queries, scoring):
        monkeypatch.setattr(module, "in_process", lambda threads, measure, *arguments: measure(*arguments))
    monkeypatch.setattr(limits, "SHAPES", ((32, 16, 32),))
    monkeypatch.setattr(limits, "_WORK", 1.0)


@pytest.fixture(scope="module")
def blocks():
    return units(5, 25, 3, 16), units(6, 7, 2, 16)


def naive(images, texts):
    """S one pair, one text block, one image block at a time, in float64."""
    scores = np.empty((len(images), len(texts)))
    for n, image in enumerate(images.astype(float)):
        for m, text in enumerate(texts.astype(float)):
            scores[n, m] = sum(max(float(v @ t) for v in image) for t in text)
    return scores


def ranked(scores, k):
    """The first k of each row by sorting."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


MATRICES = {
    "einsum_max": "torch",
    "einsum_amax": "torch",
    "sentence_transformers": "sentence_transformers",
    "maxsim_cpu": "maxsim_cpu",
}


@pytest.mark.parametrize("name", MATRICES)
def test_matrices_of_rivals_are_the_naive_loop(name, blocks):
    pytest.importorskip(MATRICES[name])
    found = getattr(rivals, name)(*map(torch.from_numpy, blocks))
    assert found.dtype == torch.float32 and np.abs(found.numpy() - naive(*blocks)).max() < 1e-6
    assert np.abs(agreement.matrix(*blocks) - naive(*blocks)).max() < 1e-12


SEARCHES = {
    "numba": lambda images, k, stack: rivals.scan_search(rivals.numba_scan(), images, k),
    "maxsim_cpu": lambda images, k, stack: rivals.scan_search(rivals.maxsim_cpu_scan(), images, k),
    "torch": lambda images, k, stack: rivals.torch_search(images, k),
    "qdrant_edge": lambda images, k, stack: stack.enter_context(rivals.qdrant_search(images, k)),
}


@pytest.mark.parametrize("module", SEARCHES)
def test_searches_of_rivals_are_the_naive_loop(module, blocks):
    pytest.importorskip(module)
    images, texts = blocks
    truth = naive(images, texts).T
    with ExitStack() as stack:
        search = SEARCHES[module](images, 4, stack)
        for text, scores, ids in zip(texts, truth, ranked(truth, 4)):
            found = search(text)
            assert found[1].tolist() == ids.tolist() and np.abs(found[0] - scores[ids]).max() < 1e-6


def test_tiles_and_dense_vectors_are_the_naive_loop(blocks, monkeypatch):
    pytest.importorskip("faiss")
    images, texts = blocks
    monkeypatch.setattr(rivals, "TILE", 7)
    scores, ids = rivals.torch_tiles(images, texts, 4)
    truth = naive(images, texts).T
    assert ids.tolist() == ranked(truth, 4).tolist()
    assert np.abs(scores - np.take_along_axis(truth, ids, 1)).max() < 1e-6
    dense = images.reshape(len(images), -1).astype(float)
    scores, ids = rivals.faiss_search(images, 4)(images[3])
    assert ids.tolist() == ranked((dense @ dense[3])[None], 4)[0].tolist() and ids[0] == 3
    assert scores[0] == pytest.approx(3.0, abs=1e-6)  # three unit blocks with themselves


OWNERS = np.array([0, 1, 1, 2, 3, 3, 3])


def counted_ranks(scores):
    """(i2t, t2i) of four images and their texts by counting what stands above."""
    best = [scores[n, OWNERS == n].max() for n in range(4)]
    i2t = [int((scores[n, OWNERS != n] > best[n]).sum()) for n in range(4)]
    return np.array(i2t), np.array([int((scores[:, m] > scores[n, m]).sum()) for m, n in enumerate(OWNERS)])


def test_both_ways_of_ranking_are_counted_ranks(blocks):
    images, texts = blocks[0][:4], blocks[1]
    i2t, t2i = counted_ranks(naive(images, texts))
    for way, rank in queries._RANKINGS.items():
        found = rank(images, texts, OWNERS)
        assert found[0].tolist() == i2t.tolist() and found[1].tolist() == t2i.tolist(), way


def test_ranks_that_are_wrong_are_refused(blocks):
    images, texts = blocks[0][:4], blocks[1]
    i2t, t2i = counted_ranks(naive(images, texts))
    queries.check_ranks("this way", images, texts, OWNERS, i2t, t2i)
    with pytest.raises(RuntimeError, match=rf"this way ranks text 3 {t2i[3] + 1}, float64 {t2i[3]} to {t2i[3]}"):
        queries.check_ranks("this way", images, texts, OWNERS, i2t, t2i + (np.arange(7) == 3))
    with pytest.raises(RuntimeError, match="this way ranks image 0"):
        queries.check_ranks("this way", images, texts, OWNERS, i2t - 1, t2i)


def test_every_row_is_whole_and_every_part_is_there():
    rows = list(scoring.measure_scoring(dataclasses.replace(SIZES, tenfold=True), runs=1))
    assert all(list(row) == list(FIELDS) for row in rows)
    assert {row["measure"] for row in rows} == {
        "matrix", "limit", "top-k, texts ask", "top-k, images ask", "one query", "5 queries", "ranks",
    }  # fmt: skip
    for row in rows:
        assert row["seconds"] is None or row["seconds"] > 0
        if row["way"].startswith("avse"):
            assert row["measure"] == "ranks" or 0 <= row["error"] < 2e-2
            assert row["measure"] in ("matrix", "ranks") or row["differing"] is not None
    ways = {(row["measure"], row["way"]): row for row in rows}
    assert ways["matrix", "einsum + max"]["ratio"] == pytest.approx(1.0)
    wanted = [target["wanted"] for target in ways["matrix", "avse fp32"]["targets"]]
    assert wanted == ["ratio >= 1.6", "of_limit >= 0.8"]
    assert ways["one query", "avse int8 + rerank, 400 images"]["peak_mib"] > 50
    assert ways["one query", "Qdrant Edge, exact"]["differing"] == 0.0
    assert sum(row["measure"] == "limit" for row in rows) == 5  # four products, one reading of memory
    only = list(scoring.measure_scoring(SIZES, runs=1, parts=["matrix"]))
    assert {row["measure"] for row in only} == {"matrix", "limit"}


def test_a_precision_that_does_not_pay_here_is_told(monkeypatch):
    for module in ("benchmarks.scoring", "scoring.tiles", "scoring.topk"):
        monkeypatch.setattr(sys.modules[f"avse.{module}"], "fast", lambda precision: precision == "fp32")
    rows = {row["way"]: row for row in scoring.measure_matrix(SIZES, 1)}
    assert rows["avse bf16"]["note"] == "in fp32: bf16 is no faster on this processor"
    limit = rows["numpy fp32 product"]["rate"]
    assert rows["avse bf16"]["of_limit"] == pytest.approx(rows["avse bf16"]["rate"] / limit)
    notes = {row["way"]: row["note"] for row in scoring.measure_topk(SIZES, 1, "random")}
    assert notes["avse int8"] == "in fp32: int8 is no faster on this processor" and notes["avse fp32"] is None


def test_work_and_ratio_follow_from_the_seconds():
    row = scoring.measure_matrix(SIZES, 1)[0]
    assert row["rate"] * row["seconds"] * 1e9 == pytest.approx(2 * 20 * 30 * 3 * 2 * 16)
    one, numba = queries.measure_queries(40, (3, 2, 16), 4, 5, 1)[:2]
    assert one["rate"] * one["seconds"] * 1e9 == pytest.approx(40 * 3 * 16)  # bytes
    assert numba["rate"] * numba["seconds"] * 1e9 == pytest.approx(4 * 40 * 3 * 16)
    assert one["ratio"] == pytest.approx(numba["seconds"] / one["seconds"])
    assert one["targets"][0]["found"] == pytest.approx(1 / one["ratio"])


@pytest.mark.parametrize("module", ["maxsim_cpu", "sentence_transformers", "numba", "faiss"])
def test_a_rival_that_is_not_installed_is_listed(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    rows = scoring.measure_matrix(SIZES, 1) + queries.measure_queries(40, (3, 2, 16), 4, 5, 1)
    lacking = [row for row in rows if row["note"] == 'not installed: pip install "avse[bench]"']
    names = {"maxsim_cpu": "maxsim-cpu", "sentence_transformers": "sentence-transformers maxsim"}
    names |= {"numba": "numba fp32 scan", "faiss": "faiss flat inner product"}
    assert {row["way"] for row in lacking} == {names[module]} and all(row["seconds"] is None for row in lacking)
    target = next(row for row in rows if row["measure"] == "one query")["targets"][0]
    assert (target["reached"] is None) == (module == "numba")


@pytest.mark.parametrize(
    ("way", "spoilt", "message"),
    [
        ("einsum_max", lambda scores: scores + 1e-3, r"einsum \+ max differs from float64 by 1.0e-03"),
        ("einsum_amax", lambda scores: scores * torch.nan, "einsum .* differs from float64 by nan"),
    ],
)
def test_a_way_that_disagrees_is_not_timed(way, spoilt, message, monkeypatch):
    true = getattr(rivals, way)
    monkeypatch.setattr(rivals, way, lambda images, texts: spoilt(true(images, texts)))
    monkeypatch.setattr(scoring, "interleaved", lambda ways, runs: pytest.fail("timed"))
    with pytest.raises(RuntimeError, match=message):
        scoring.measure_matrix(SIZES, 1)


def test_first_k_that_are_not_are_refused():
    truth = np.array([[0.1, 0.9, 0.5, 0.5 + 1e-8]])
    best = np.array([[0.9, 0.5]], np.float32)

    def check(ids, scores=best):
        return agreement.check_first("this way", (scores, np.array([ids])), truth, 1e-6)

    assert check([1, 3]) < 1e-7 and check([1, 2]) < 1e-7  # a tie
    assert agreement.differing_ids(np.array([[1, 2]]), truth, 4) == 0.0
    assert agreement.differing_ids(np.array([[1, 2], [1, 0]]), truth.repeat(2, 0), 4) == 0.5
    with pytest.raises(RuntimeError, match="this way gives a document twice"):
        check([1, 1], np.array([[0.9, 0.9]], np.float32))
    with pytest.raises(RuntimeError, match="leaves out documents whose scores are higher by 4.0e-01"):
        check([1, 0], np.array([[0.9, 0.1]], np.float32))
    with pytest.raises(RuntimeError, match="differs from float64 by 4.0e-01"):
        check([1, 0])
    with pytest.raises(RuntimeError, match=r"gives scores of shape \(1, 1\)"):
        agreement.check("this way", best[:, :1], truth, 1.0)


def test_pairs_are_entries_of_the_matrix(blocks):
    rows, columns = np.array([[0, 24], [7, 7]]), np.array([[6, 0], [3, 3]])
    assert np.abs(agreement.pairs(*blocks, rows, columns) - naive(*blocks)[rows, columns]).max() < 1e-12


def test_too_much_is_refused_before_the_work(monkeypatch):
    with pytest.raises(ValueError, match="the first 40 of 20 are asked for"):
        next(scoring.measure_scoring(dataclasses.replace(SIZES, k=40)))
    with pytest.raises(ValueError, match="20 images, 19 texts: for ranks each image needs one"):
        next(scoring.measure_scoring(dataclasses.replace(SIZES, texts=19)))
    monkeypatch.setattr(queries.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(OSError, match=r"400 images need 0.0 GB in .*: name a larger folder by TMPDIR"):
        next(queries.measure_tenfold(40, (3, 2, 16), 4, 1, 1))
