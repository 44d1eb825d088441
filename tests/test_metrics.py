"""Metrics: by hand, against naive ranks, against the authors' values, ties, duplicates, intervals."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avse.metrics import (
    Ranks,
    interval,
    paired_difference,
    paired_differences,
    report_from_ranks,
    resampled_recalls,
    resampled_rsums,
    retrieval_metrics,
    with_intervals,
)
from avse.ranks import ROWS, count_ranks, first_k
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


def random_case(seed, n, m, coarse, words=4):
    """Scores of distinct texts, the same spread over the captions, owners and captions that share texts."""
    random = np.random.default_rng(seed)
    texts = [f"Text {random.integers(words)}" for _ in range(m)]
    columns = text_groups(texts)
    scores = random.standard_normal((n, int(columns.max()) + 1))
    scores = np.round(scores) if coarse else scores
    return scores, scores[:, columns], random.integers(n, size=m), texts, columns


def same_report(found, expected):
    for a, b in ((found, expected), (found.duplicate_aware, expected.duplicate_aware)):
        for name in vars(a.ranks):
            assert np.array_equal(getattr(a.ranks, name), getattr(b.ranks, name)), name
    assert found.to_dict() == expected.to_dict()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 14), st.booleans())
def test_texts_that_share_a_column_rank_as_if_they_had_one_each(seed, n, m, coarse):
    scores, spread, text_to_image, texts, columns = random_case(seed, n, m, coarse)
    shared = retrieval_metrics(scores.astype(np.float32), text_to_image, texts=texts, columns=columns)
    same_report(shared, retrieval_metrics(spread.astype(np.float32), text_to_image, texts=texts))


def test_columns_that_no_caption_has_do_not_count():
    scores, spread, text_to_image, texts, columns = random_case(5, 6, 20, True)
    wide = np.concatenate([np.full((6, 1), 9.0), scores, np.full((6, 1), 9.0)], axis=1)
    found = retrieval_metrics(wide, text_to_image, texts=texts, columns=columns + 1)
    same_report(found, retrieval_metrics(spread, text_to_image, texts=texts))


def naive_folds(scores, text_to_image, folds, texts, ks=(1, 5, 10)):
    """Recalls of every fold by sorting, then their means: [i2t, t2i] -> K -> (against, for)."""
    size = len(scores) // folds
    found = []
    for fold in range(folds):
        own = [j for j, image in enumerate(text_to_image) if fold * size <= image < (fold + 1) * size]
        part = scores[fold * size : (fold + 1) * size][:, own]
        words = None if texts is None else [texts[j] for j in own]
        sides = ranks_by_hand(part, np.array([text_to_image[j] - fold * size for j in own]), words)
        found.append([[[100 * np.mean([r < k for r in ranks]) for k in ks] for ranks in side] for side in sides])
    return np.mean(found, axis=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.integers(0, 12), st.booleans())
def test_folds_are_means_over_galleries_of_their_own(seed, size, folds, more, coarse):
    random = np.random.default_rng(seed)
    n = size * folds
    # each fold has a caption; beyond that any number an image, none included, in any order
    owners = [random.integers(size) + fold * size for fold in range(folds)]
    text_to_image = random.permutation([*owners, *random.integers(n, size=more)])
    texts = [f"Text {random.integers(5)}" for _ in text_to_image]
    columns = text_groups(texts)
    scores = random.standard_normal((n, int(columns.max()) + 1))
    scores = np.round(scores) if coarse else scores
    report = retrieval_metrics(scores, text_to_image, texts=texts, columns=columns, folds=folds)
    for part, words in ((report, None), (report.duplicate_aware, texts)):
        expected = naive_folds(scores[:, columns], text_to_image, folds, words)
        for side, (against, favour) in zip((part.i2t, part.t2i), expected):
            assert list(side.recalls.values()) == pytest.approx(against.tolist())
            assert list(side.optimistic.values()) == pytest.approx(favour.tolist())
        assert part.rsum == pytest.approx(expected[:, 0].sum())
    assert report.to_dict().get("folds", 1) == folds


def test_folds_by_hand():
    # two folds of two images with one caption each; what stands across the folds is never looked at
    scores = np.array(
        [[0.9, 0.1, 9.0, 9.0], [0.2, 0.8, 9.0, 9.0], [9.0, 9.0, 0.1, 0.9], [9.0, 9.0, 0.8, 0.2]], dtype=np.float32
    )
    report = retrieval_metrics(scores, np.arange(4), folds=2)
    assert report.i2t.r1 == 50 and report.t2i.r1 == 50 and report.i2t.r5 == 100
    assert report.i2t.mean_rank == 1.5 and report.ranks.i2t.tolist() == [0, 0, 1, 1]
    assert report.ranks.fold_starts.tolist() == [0, 2] and "means over 2 folds" in report.table()
    assert retrieval_metrics(scores, np.arange(4)).i2t.r1 == 0
    with pytest.raises(ValueError, match="4 images cannot be cut into 3 folds"):
        retrieval_metrics(scores, np.arange(4), folds=3)
    with pytest.raises(ValueError, match="images 2 to 3, a fold of 2, have no caption"):
        retrieval_metrics(scores, np.array([0, 0, 1, 1]), folds=2)


def test_many_rows_are_counted_right():
    # more rows than are compared at a time, all of them ties: a count in one byte would overflow
    n = 3 * ROWS + 7
    ranks = count_ranks(np.zeros((n, n), np.float32), np.arange(n), np.arange(n))
    assert (ranks.i2t == n - 1).all() and (ranks.t2i == n - 1).all() and not ranks.t2i_optimistic.any()
    assert ROWS <= 255


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.booleans())
def test_first_k_sorts_as_lists_do(seed, count, coarse):
    random = np.random.default_rng(seed)
    scores = np.round(random.standard_normal(count)) if coarse else random.standard_normal(count)
    last = random.random(count) < 0.5
    k = int(random.integers(1, count + 1))
    assert first_k(scores, k).tolist() == sorted(range(count), key=lambda j: (-scores[j], j))[:k]
    assert first_k(scores, k, last).tolist() == sorted(range(count), key=lambda j: (-scores[j], last[j], j))[:k]


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
        (np.zeros((2, 3)), [0, 1], r"\(2, 3\), text_to_image \(2,\): expected \(n, m\), \(m,\)$"),
        (np.zeros(3), [], r"scores have shape \(3,\)"),
        (np.zeros((2, 2)), [0, 2], "names image 2; scores have rows 0..1"),
        (np.zeros((2, 2)), [1, -1], "names image -1; scores have rows 0..1"),
        (np.array([[np.nan, 0.0]]), [0, 0], "1 of 2 scores are not finite"),
        (np.zeros((0, 0)), [], "nothing to measure"),
        (np.zeros((2, 0)), [], "nothing to measure"),
        (np.zeros((0, 2)), [0, 0], "nothing to measure"),
    ],
)
def test_misuse_is_named(scores, texts, message):
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(scores, np.array(texts, dtype=np.int64))


def test_columns_that_do_not_fit_are_named():
    owners = np.array([0, 1])
    with pytest.raises(ValueError, match="columns name column 2; scores have columns 0..1"):
        retrieval_metrics(np.zeros((2, 2)), owners, columns=np.array([0, 2]))
    with pytest.raises(ValueError, match=r"text_to_image \(2,\), columns \(1,\)"):
        retrieval_metrics(np.zeros((2, 2)), owners, columns=np.array([0]))
    with pytest.raises(ValueError, match="columns name column -1; scores have columns 0..1"):
        retrieval_metrics(np.zeros((2, 2)), owners, columns=np.array([1, -1]))
    with pytest.raises(ValueError, match="^columns: captions that share a column must be one text, but for case"):
        retrieval_metrics(np.zeros((2, 1)), owners, texts=["a", "b"], columns=np.array([0, 0]))
    with pytest.raises(ValueError, match="^3 texts for 2 captions of the scores$"):
        retrieval_metrics(np.zeros((2, 2)), owners, texts=["a", "b", "c"])


def test_lists_and_narrow_integers_do_as_well():
    random = np.random.default_rng(9)
    scores, owners = random.integers(9, size=(20, 40)), np.repeat(np.arange(20), 2)
    expected = retrieval_metrics(scores.astype(np.float64), owners).to_dict()
    assert retrieval_metrics(scores.tolist(), owners.tolist()).to_dict() == expected
    with np.errstate(invalid="raise"):  # no integer is minus infinity
        narrow = [array.astype(np.uint8) for array in (scores, owners, np.arange(40))]
        found = retrieval_metrics(narrow[0], narrow[1], columns=narrow[2])
    assert found.to_dict() == expected


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


def test_folds_are_drawn_inside_themselves():
    random = np.random.default_rng(4)
    text_to_image = np.repeat(np.arange(12), [1, 2, 3, 1, 2, 0, 3, 1, 1, 2, 2, 4])
    scores = random.standard_normal((12, len(text_to_image)))
    ranks = retrieval_metrics(scores, text_to_image, folds=3).ranks
    found = resampled_recalls([ranks], resamples=40, seed=3, ks=(1, 2))
    generator = np.random.default_rng(3)
    folds = [[image for image in range(4 * f, 4 * f + 4) if image != 5] for f in range(3)]  # image 5 has no caption
    drawn = [generator.multinomial(len(fold), np.full(len(fold), 1 / len(fold)), size=40) for fold in folds]
    for r in range(40):
        for j, k in enumerate((1, 2)):
            i2t, t2i = [], []
            for fold, counts in zip(folds, drawn):
                again = [image for image, count in zip(fold, counts[r]) for _ in range(count)]
                i2t.append(np.mean([ranks.i2t[ranks.image_of_query == image][0] < k for image in again]))
                t2i.append(np.mean([rank < k for image in again for rank in ranks.t2i[text_to_image == image]]))
            assert found[r, :, j] == pytest.approx([100 * np.mean(i2t), 100 * np.mean(t2i)])


def test_every_recall_gets_an_interval():
    random = np.random.default_rng(6)
    text_to_image = np.repeat(np.arange(60), 3)
    scores = random.standard_normal((60, 180))
    scores[text_to_image, np.arange(180)] += 1.5
    texts = [f"{i // 2}" for i in range(180)]
    report = with_intervals(retrieval_metrics(scores, text_to_image, texts=texts, folds=2), 300)
    drawn = resampled_recalls([report.ranks], 300)
    for part in (report, report.duplicate_aware):
        assert part.interval[0] < part.rsum < part.interval[1]
        for side in (part.i2t, part.t2i):
            for k, (low, high) in side.intervals.items():
                assert low <= side.recalls[k] <= high and low < high
    assert report.t2i.intervals[5] == interval(drawn[:, 1, 1])
    values = report.to_dict()
    assert values["rsum_ci"] == list(report.interval)
    assert values["duplicate_aware"]["i2t"]["ci"]["r1"] == list(report.duplicate_aware.i2t.intervals[1])
    assert [line.split()[0] for line in report.table().splitlines()[1:4]] == ["plain", "from", "to"]


def test_intervals_are_quantiles_of_the_draws():
    random = np.random.default_rng(8)
    text_to_image = np.repeat(np.arange(20), 2)
    texts = [f"{i // 3}" for i in range(40)]
    report = retrieval_metrics(random.standard_normal((20, 40)), text_to_image, ks=(1, 2), texts=texts)
    found = with_intervals(report, 150, 0.8, 3)
    for part in (found, found.duplicate_aware):
        drawn = resampled_recalls([part.ranks], 150, 3, (1, 2))
        for i, side in enumerate((part.i2t, part.t2i)):
            assert {k: pytest.approx(np.quantile(drawn[:, i, j], [0.1, 0.9])) for j, k in enumerate((1, 2))} == {
                k: ends for k, ends in side.intervals.items()
            }
        assert part.interval == pytest.approx(np.quantile(drawn.sum(axis=(1, 2)), [0.1, 0.9]))
    assert with_intervals(report).to_dict() == with_intervals(report, 1000, 0.95, 0).to_dict()
    assert with_intervals(replace(report, duplicate_aware=None), 50).duplicate_aware is None


def test_differences_of_every_recall_stand_on_the_same_draws():
    random = np.random.default_rng(7)
    better, worse = make_ranks(random, shift=1.0), make_ranks(random)
    found = paired_differences([better], [worse], 200)
    assert found["rsum"] == paired_difference([better], [worse], 200)
    names = [name for name in found if name != "rsum"]
    assert names == [f"{side}_r{k}" for side in ("i2t", "t2i") for k in (1, 5, 10)]
    assert sum(found[name]["mean"] for name in names) == pytest.approx(found["rsum"]["mean"])
    expected = report_from_ranks(better).t2i.r1 - report_from_ranks(worse).t2i.r1
    assert found["t2i_r1"]["mean"] == pytest.approx(expected) and found["t2i_r1"]["p"] < 0.05
    assert found["t2i_r1"]["ci"][0] < expected < found["t2i_r1"]["ci"][1]


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
    assert retrieval_metrics(np.eye(3), np.arange(3), meta={"seed": 4}).to_dict()["seed"] == 4
    assert isinstance(report.ranks, Ranks)


def test_metrics_import_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, avse.metrics; assert 'torch' not in sys.modules"], check=True)
