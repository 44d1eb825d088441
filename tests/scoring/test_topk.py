"""The first k: against a sort of the naive matrix, on random, clustered and equal rows, by every precision."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avse.scoring import Quantised, TopK, aeom, quantise, scan, topk

tiles = sys.modules["avse.scoring.tiles"]
module = sys.modules["avse.scoring.topk"]


def blocks(random, n, b, c, near=None):
    """Unit blocks; ``near``: small steps away from a few centres, the hard case."""
    rows = random.standard_normal((n, b, c))
    if near is not None:
        centres = random.standard_normal((max(1, n // 50), b, c))
        rows = centres[random.integers(len(centres), size=n)] + near * rows
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def truth(queries, documents, queries_are):
    """(q, n) scores in float64."""
    images, texts = (documents, queries) if queries_are == "texts" else (queries, documents)
    grid = np.einsum("npc,mqc->nmpq", images.astype(np.float64), texts.astype(np.float64)).max(2).sum(-1)
    return grid.T if queries_are == "texts" else grid


def assert_first(found, scores, k, within=2e-6):
    """``found`` are k different documents a query, best first, none of them beaten by one left out."""
    q, n = scores.shape
    assert found.ids.shape == found.scores.shape == (q, min(k, n))
    for query in range(q):
        ids = found.ids[query]
        assert len(set(ids.tolist())) == len(ids) and ids.min() >= 0 and ids.max() < n
        mine = scores[query, ids]
        assert np.abs(found.scores[query] - mine).max() < within
        assert (np.diff(found.scores[query]) <= 0).all()
        rest = np.delete(scores[query], ids)
        assert not len(rest) or rest.max() <= mine.min() + within


@pytest.fixture
def small_tiles(monkeypatch):
    [monkeypatch.setitem(tiles.TILE, kind, (7, 11)) for kind in tiles.PRECISIONS]


@pytest.fixture
def as_if_fast(monkeypatch):
    """int8 tiles even on a processor where they would not pay."""
    monkeypatch.setattr(module, "fast", lambda precision: True)


@pytest.mark.parametrize("side", ["texts", "images"])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("near", [None, 0.3, 0.01])
def test_first_k_of_random_and_crowded_rows(side, precision, near, as_if_fast):
    random = np.random.default_rng(3)
    images, texts = blocks(random, 700, 4, 32, near), blocks(random, 300, 2, 32, near)
    queries, documents = (texts, images) if side == "texts" else (images, texts)
    assert_first(topk(queries, documents, 10, side, precision), truth(queries, documents, side), 10)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_sizes(precision, data):
    n, q, k = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 40)), data.draw(st.integers(1, 70))
    p, r, c = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4)), data.draw(st.integers(1, 20))
    side = data.draw(st.sampled_from(["texts", "images"]))
    random = np.random.default_rng(data.draw(st.integers(0, 1000)))
    queries, documents = blocks(random, q, r, c), blocks(random, n, p, c)
    with pytest.MonkeyPatch.context() as patch:
        [patch.setitem(tiles.TILE, kind, (7, 11)) for kind in tiles.PRECISIONS]
        patch.setattr(module, "fast", lambda precision: True)
        found = topk(queries, documents, k, side, precision)
    assert_first(found, truth(queries, documents, side), k)


@pytest.mark.parametrize("side", ["texts", "images"])
def test_ties_go_to_the_lower_number(side, small_tiles):
    random = np.random.default_rng(0)
    signs = np.where(random.random((4, 2, 2)) < 0.5, -1.0, 1.0).astype(np.float32)  # whole numbers: exact in any order
    documents = signs[random.integers(0, 4, 100)]
    queries = np.where(random.random((30, 2, 2)) < 0.5, -1.0, 1.0).astype(np.float32)
    expected = np.argsort(-truth(queries, documents, side), axis=1, kind="stable")[:, :25]
    assert (topk(queries, documents, 25, side).ids == expected).all()
    generic = topk(queries.astype(np.float64), documents.astype(np.float64), 25, side)
    assert (generic.ids == expected).all()


def test_all_documents_equal(small_tiles, as_if_fast):
    random = np.random.default_rng(0)
    documents = np.repeat(blocks(random, 1, 3, 8), 200, axis=0)
    queries = blocks(random, 40, 2, 8)
    for precision in ("fp32", "int8"):
        found = topk(queries, documents, 5, precision=precision)
        assert np.abs(found.scores - truth(queries, documents, "texts")[:, :5]).max() < 1e-6


@pytest.mark.parametrize("side", ["texts", "images"])
@pytest.mark.parametrize("number", [1, 3, 40])
def test_documents_quantised_once(side, number, as_if_fast):
    random = np.random.default_rng(1)
    documents, queries = blocks(random, 3000, 4, 64), blocks(random, number, 3, 64)
    prepared = quantise(documents)
    assert_first(topk(queries, prepared, 10, side, "int8"), truth(queries, documents, side), 10)
    with pytest.raises(ValueError, match="without their blocks"):
        topk(queries, Quantised(prepared.values, prepared.step), 10, side, "int8")


def test_torch_in_torch_out_and_the_way_of_other_devices():
    random = np.random.default_rng(2)
    images, texts = blocks(random, 90, 4, 16), blocks(random, 30, 2, 16)
    expected = topk(texts, images, 7)
    found = topk(torch.from_numpy(texts), torch.from_numpy(images), 7)
    assert isinstance(found.ids, torch.Tensor) and (found.ids.numpy() == expected.ids).all()
    double = topk(torch.from_numpy(texts).double(), torch.from_numpy(images).double(), 7)
    assert double.scores.dtype == torch.float64 and (double.ids.numpy() == expected.ids).all()
    half = topk(torch.from_numpy(texts).bfloat16(), torch.from_numpy(images).bfloat16(), 7)
    assert np.abs(half.scores.float().numpy() - expected.scores).max() < 0.02
    if torch.cuda.is_available():
        on_gpu = topk(torch.from_numpy(texts).cuda(), torch.from_numpy(images).cuda(), 7)
        assert np.abs(on_gpu.scores.cpu().numpy() - expected.scores).max() < 1e-3


def test_bfloat16_is_close():
    random = np.random.default_rng(2)
    images, texts = blocks(random, 300, 8, 256), blocks(random, 200, 4, 256)
    exact = truth(texts, images, "texts")
    assert np.abs(aeom(images, texts, "bf16").T - exact).max() < 4e-3
    found = topk(texts, images, 5, precision="bf16")
    assert np.abs(found.scores - np.sort(exact, axis=1)[:, ::-1][:, :5]).max() < 4e-3
    if tiles.fast("bf16"):  # else float32, which is exact
        assert np.abs(aeom(images, texts, "bf16").T - exact).max() > 1e-5


def test_bad_calls_are_told():
    random = np.random.default_rng(0)
    images, texts = blocks(random, 3, 4, 8), blocks(random, 2, 2, 8)
    for k in (0, -1, True, 2.5):
        with pytest.raises(ValueError, match="at least 1"):
            topk(texts, images, k)
    with pytest.raises(ValueError, match="texts or images"):
        topk(texts, images, 1, "words")
    with pytest.raises(ValueError, match="fp32, bf16, int8"):
        topk(texts, images, 1, precision="fp8")
    with pytest.raises(ValueError, match=r"\(n, P, C\)"):
        topk(texts[0], images, 1)
    for kind in (np.float32, np.float64):
        assert topk(texts.astype(kind), images[:0].astype(kind), 3).ids.shape == (2, 0)
        assert topk(texts[:0].astype(kind), images.astype(kind), 3).ids.shape == (0, 3)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("worst", [np.nan, np.inf])
@pytest.mark.parametrize("number", [3, 40])
def test_what_is_no_number_is_told(kind, worst, number, small_tiles, as_if_fast):
    random = np.random.default_rng(0)
    images, texts = blocks(random, 90, 2, 8).astype(kind), blocks(random, number, 2, 8).astype(kind)
    spoilt = [images.copy(), texts.copy()]
    spoilt[0][80, :, 3], spoilt[1][1, :, 3] = worst, worst
    for precision in tiles.PRECISIONS:
        with pytest.raises(ValueError, match="NaN"):
            topk(texts, spoilt[0], 1, precision=precision)
        with pytest.raises(ValueError, match="NaN"):
            topk(spoilt[1], images, 1, precision=precision)
    with pytest.raises(ValueError, match="NaN"):
        quantise(spoilt[0])
    with pytest.raises(ValueError, match="NaN"):
        topk(spoilt[1], quantise(images), 1, precision="int8")


@pytest.mark.parametrize("side", ["texts", "images"])
@pytest.mark.parametrize("number", [2, 400])
def test_a_band_that_the_sample_made_too_narrow_is_widened(side, number, as_if_fast, monkeypatch):
    random = np.random.default_rng(4)
    images, texts = blocks(random, 1500, 4, 32), blocks(random, 1500, 2, 32)
    queries, documents = (texts[:400], images) if side == "texts" else (images[:400], texts)
    monkeypatch.setattr(module, "error_of", lambda approximate, exact: 1e-6)
    prepared = quantise(documents)
    parts = [topk(queries[at : at + number], prepared, 10, side, "int8") for at in range(0, 400, number)]
    found = TopK(*(np.concatenate(values) for values in zip(*parts)))
    assert_first(found, truth(queries, documents, side), 10)


def test_a_band_that_holds_most_documents_is_not_scored_pair_by_pair(as_if_fast, monkeypatch):
    random = np.random.default_rng(4)
    images, texts = blocks(random, 600, 4, 32), blocks(random, 60, 2, 32)
    monkeypatch.setattr(module, "error_of", lambda approximate, exact: 0.02)
    monkeypatch.setattr(module, "pair_scores", lambda *arguments: pytest.fail("pair by pair"))
    assert_first(topk(texts, images, 10, precision="int8"), truth(texts, images, "texts"), 10)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_read_only_and_backward_blocks(precision, as_if_fast, monkeypatch):
    monkeypatch.setattr(tiles, "fast", lambda precision: True)
    random = np.random.default_rng(6)
    images, texts = blocks(random, 90, 3, 16), blocks(random, 40, 2, 16)
    for rows in (images, texts):
        rows.flags.writeable = False
    within = 0.02 if precision == "bf16" else 2e-6
    assert_first(
        topk(texts[::-1], images[:, ::-1], 5, precision=precision), truth(texts[::-1], images, "texts"), 5, within
    )
    prepared = quantise(images)
    prepared.values.flags.writeable = False
    assert_first(topk(texts, prepared, 5, precision="int8"), truth(texts, images, "texts"), 5)
    assert_first(
        TopK(*map(np.asarray, topk(torch.from_numpy(texts.copy()), prepared, 5))), truth(texts, images, "texts"), 5
    )


def test_scan_error_is_that_of_rounding_alone():
    """Against the sum of rounded numbers in whole-number arithmetic; weights of the query's blocks are kept."""
    random = np.random.default_rng(5)
    images, query = blocks(random, 9000, 3, 48), blocks(random, 1, 2, 48)[0] * np.array([[0.1], [2.0]], np.float32)
    made = quantise(images)
    steps = np.abs(query).max(1, keepdims=True) / 127
    whole = np.rint(query / steps).astype(np.int64)
    products = np.einsum("bnc,rc->bnr", made.values.astype(np.int64), whole)
    expected = (products.max(0) * (steps[:, 0] * made.step)).sum(1)
    assert np.abs(scan(query, made) - expected).max() < 1e-5
    step = np.abs(query).max() / 127
    products = np.einsum("bnc,rc->bnr", made.values.astype(np.int64), np.rint(query / step).astype(np.int64))
    assert np.abs(scan(query, made, "texts") - products.max(2).sum(0) * step * made.step).max() < 1e-5
    with pytest.raises(ValueError, match="query"):
        scan(query[:, :5], made)


def test_quantise_in_parts_and_into_a_file(tmp_path, monkeypatch):
    rows = blocks(np.random.default_rng(0), 50, 3, 8)
    whole = quantise(rows)
    assert np.abs(whole.values.transpose(1, 0, 2) * whole.step - rows).max() <= whole.step / 2 + 1e-6
    monkeypatch.setattr(sys.modules["avse.scoring.int8"], "_ROWS", 7)
    mapped = np.memmap(tmp_path / "b.i8", np.int8, "w+", shape=(3, 50, 8))
    assert quantise(rows, mapped).values is mapped and (mapped == whole.values).all()
    with pytest.raises(ValueError, match="int8"):
        quantise(rows, np.empty((50, 3, 8), np.int8))
    assert quantise(np.zeros((2, 1, 4), np.float32)).values.max() == 0


def test_numpy_search_loads_no_torch():
    code = (
        "import sys, numpy as np; from avse.scoring import topk, quantise, rank_of;"
        "x = np.eye(4, dtype=np.float32)[:, None]; q = quantise(x);"
        "assert topk(x[:1], q, 1, precision='int8').ids.tolist() == [[0]];"
        "assert topk(x, x, 1).ids.ravel().tolist() == [0, 1, 2, 3]; rank_of(x, x, range(4));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
