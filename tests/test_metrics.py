"""Metrics: by hand, against naive ranks, against the authors' values, ties, duplicates, intervals."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avse.metrics import (
    Ranks,
    interval,
    paired_difference,
    report_from_ranks,
    resampled_rsums,
    retrieval_metrics,
)
from avse.texts import normalize_text, text_groups

GOLDEN = Path(__file__).parent / "golden"


def naive(scores, matches):
    """Ranks of the rows by sorting lists: ties against the system, then for it; None where nothing matches."""
    worst, best = [], []
    for row, match in zip(scores.tolist(), matches.tolist()):
        if not any(match):
            continue
        order = sorted(range(len(row)), key=lambda j: (-row[j], match[j]))
        worst.append(next(r for r, j in enumerate(order) if match[j]))
        order = sorted(range(len(row)), key=lambda j: (-row[j], not match[j]))
        best.append(next(r for r, j in enumerate(order) if match[j]))
    # Other matches that stand before the first counted one do not exist: the best match is the first of them.
    return worst, best


def ranks_by_hand(scores, text_to_image, texts=None):
    own = text_to_image[None, :] == np.arange(len(scores))[:, None]
    if texts is not None:
        names = [normalize_text(t) for t in texts]
        carried = [{names[j] for j in np.flatnonzero(row)} for row in own]
        own = np.array([[name in carried[i] for name in names] for i in range(len(scores))])
    return naive(scores, own), naive(scores.T, own.T)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 14), st.booleans())
def test_equals_naive_ranks(seed, n, m, coarse):
    random = np.random.default_rng(seed)
    scores = random.standard_normal((n, m))
    if coarse:
        scores = np.round(scores)
    text_to_image = random.integers(n, size=m)
    texts = [f"Text {random.integers(4)}" for _ in range(m)]
    report = retrieval_metrics(scores, text_to_image, texts=texts)
    (i2t, i2t_best), (t2i, t2i_best) = ranks_by_hand(scores, text_to_image)
    has = np.unique(text_to_image)
    assert report.ranks.image_of_query.tolist() == has.tolist()
    assert report.ranks.i2t.tolist() == i2t and report.ranks.i2t_optimistic.tolist() == i2t_best
    assert report.ranks.t2i.tolist() == t2i and report.ranks.t2i_optimistic.tolist() == t2i_best
    (i2t, _), (t2i, _) = ranks_by_hand(scores, text_to_image, texts)
    assert report.duplicate_aware.ranks.i2t.tolist() == i2t and report.duplicate_aware.ranks.t2i.tolist() == t2i
    assert report.duplicate_aware.rsum >= report.rsum - 1e-9


@pytest.mark.parametrize("name", ["plain", "ties", "const"])
def test_golden_ranks(name):
    golden = np.load(GOLDEN / "metrics.npz")
    report = retrieval_metrics(golden[name], np.arange(100) // 5)
    for side in ("i2t", "t2i"):
        low, high = golden[f"{name}_{side}_opt"], golden[f"{name}_{side}_pess"]
        assert np.array_equal(getattr(report.ranks, side), high)
        assert np.array_equal(getattr(report.ranks, f"{side}_optimistic"), low)
        official = golden[f"{name}_{side}_ranks"]
        assert ((low <= official) & (official <= high)).all()
        if name == "plain":
            direction = getattr(report, side)
            found = (direction.r1, direction.r5, direction.r10, direction.median_rank, direction.mean_rank)
            assert found == pytest.approx(tuple(golden[f"{name}_{side}"]))


def test_by_hand_with_any_number_of_captions():
    # image 0 has texts 0 and 1, image 1 has text 2, image 2 has none and only distracts
    scores = np.array([[0.1, 0.9, 0.5], [0.2, 0.3, 0.4], [0.8, 0.1, 0.6]])
    report = retrieval_metrics(scores, np.array([0, 0, 1]), ks=(1, 2))
    assert report.i2t.recalls == {1: 100.0, 2: 100.0}  # image 0: text 1 first; image 1: text 2 first
    # text 0: 0.8, 0.2 before 0.1 -> rank 3; text 1: first; text 2: 0.6, 0.5 before 0.4 -> rank 3
    assert report.t2i.recalls[1] == pytest.approx(100 / 3) and report.t2i.recalls[2] == pytest.approx(100 / 3)
    assert report.t2i.median_rank == 3 and report.t2i.mean_rank == pytest.approx(7 / 3)
    assert report.rsum == pytest.approx(200 + 200 / 3)


def test_a_constant_matrix_does_not_score():
    report = retrieval_metrics(np.zeros((20, 100)), np.arange(100) // 5)
    assert report.rsum == 0 and report.has_ties
    assert report.i2t.optimistic[1] == 100
    assert "ties in favour" in report.table()


def test_duplicates_by_hand():
    texts = ["A house", "a  house", "a dog"]
    scores = np.array([[0.9, 0.9, 0.0], [0.8, 0.8, 0.1], [0.1, 0.1, 0.7]])
    report = retrieval_metrics(scores, np.array([0, 1, 2]), texts=texts)
    assert report.t2i.r1 == pytest.approx(200 / 3)  # "a house" of image 1 finds image 0 first
    assert report.duplicate_aware.t2i.r1 == 100
    assert report.i2t.r1 == pytest.approx(100 / 3)  # the twin ties with the own text, and ties count against
    assert report.duplicate_aware.i2t.r1 == 100
    assert report.shared_texts == pytest.approx(2 / 3)
    assert report.ceiling["i2t"] == pytest.approx(100 / 3) and report.ceiling["t2i"] == pytest.approx(100 / 3)
    assert text_groups(texts).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("scores", "texts", "message"),
    [
        (np.zeros((2, 3)), [0, 1], r"\(2, 3\), text_to_image \(2,\)"),
        (np.zeros((2, 2)), [0, 2], "names image 2; scores have rows 0..1"),
        (np.array([[np.nan, 0.0]]), [0, 0], "1 of 2 scores are not finite"),
        (np.zeros((0, 0)), [], "nothing to measure"),
    ],
)
def test_misuse_is_named(scores, texts, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(scores, np.array(texts, dtype=np.int64))


def make_ranks(random, images=60, captions=3, shift=0.0):
    text_to_image = np.repeat(np.arange(images), captions)
    scores = random.standard_normal((images, images * captions))
    scores[text_to_image, np.arange(images * captions)] += 1.5 + shift
    return retrieval_metrics(scores, text_to_image).ranks


def test_bootstrap_equals_a_loop_that_copies_images():
    ranks = make_ranks(np.random.default_rng(0), images=12)
    found = resampled_rsums([ranks], resamples=50, seed=3)
    drawn = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), size=50)
    for counts, value in zip(drawn, found):
        i2t = np.repeat(ranks.i2t, counts)
        t2i = np.concatenate(
            [np.repeat(ranks.t2i[ranks.image_of_text == i][None], c, 0).ravel() for i, c in enumerate(counts)]
        )
        expected = sum(100 * (i2t < k).mean() + 100 * (t2i < k).mean() for k in (1, 5, 10))
        assert value == pytest.approx(expected)


def test_intervals_cover_and_differences_are_paired():
    random = np.random.default_rng(1)
    ranks = make_ranks(random)
    low, high = interval(resampled_rsums([ranks], 500))
    assert low < report_from_ranks(ranks).rsum < high
    same = paired_difference([ranks], [ranks])
    assert same["mean"] == 0 and same["ci"] == [0, 0] and same["p"] == 1
    better = [make_ranks(random, shift=1.0) for _ in range(3)]
    worse = [make_ranks(random) for _ in range(3)]
    found = paired_difference(better, worse)
    assert found["mean"] > 0 and found["ci"][0] > 0 and found["p"] < 0.01
    turned = paired_difference(worse, better)
    assert turned["mean"] == pytest.approx(-found["mean"])


def test_other_pairs_or_seeds_are_refused():
    random = np.random.default_rng(2)
    with pytest.raises(ValueError, match="different pairs"):
        paired_difference([make_ranks(random)], [make_ranks(random, images=30)])
    with pytest.raises(ValueError, match="1 seeds of one system against 2"):
        paired_difference([make_ranks(random)], [make_ranks(random)] * 2)


def test_report_says_what_it_stands_with():
    report = retrieval_metrics(np.eye(3), np.arange(3), texts=list("abc"), meta={"split": "test", "seed": 4})
    values = report.to_dict()
    assert values["split"] == "test" and values["seed"] == 4 and values["pairs"] == 3 and values["rsum"] == 600
    assert values["duplicate_aware"]["rsum"] == 600 and "split test, seed 4" in report.table()
    assert isinstance(report.ranks, Ranks)


def test_metrics_import_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, avse.metrics; assert 'torch' not in sys.modules"], check=True)
