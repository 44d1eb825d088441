"""Thresholds and confidences against brute force: every subset, hand-made scores, another draw of the same world."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from avse.calibration import (
    SIDES,
    Calibration,
    CalibrationError,
    Questions,
    calibrate,
    content_words,
    questions,
    reliability,
)
from avse.config import TrainConfig
from avse.data import load_dataset
from avse.data.scenes import make_scenes
from avse.model import AVSE
from avse.trainer import Trainer


def world(seed: int, images: int = 200, gap: float = 0.45) -> tuple[np.ndarray, np.ndarray]:
    """Scores (n, n) of pairs on the diagonal, `gap` above non-pairs on average, and the owner of each text."""
    random = np.random.default_rng(seed)
    scores = random.normal(0.2, 0.1, (images, images))
    scores[np.diag_indices(images)] += random.normal(gap, 0.15, images)
    return scores.clip(-1, 1).astype(np.float32), np.arange(images)


def as_questions(others: list[list[float]], pairs: list[float] | None = None) -> Questions:
    """Questions with ragged lists of others."""
    width = max(map(len, others))
    rows = [sorted(row, reverse=True) + [-np.inf] * (width - len(row)) for row in others]
    counts = np.array([len(row) for row in others])
    return Questions(np.array(pairs or [1.0] * len(others), np.float32), np.array(rows, np.float32), counts)


def best_of_subsets(others: list[list[float]], size: int) -> list[list[float]]:
    """The best score in every subset of that size, question by question, by enumeration."""
    return [[max(subset) for subset in itertools.combinations(row, min(size, len(row)))] for row in others]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 20])
def test_the_share_that_passes_is_the_mean_over_every_subset(size):
    random = np.random.default_rng(size)
    others = [random.integers(0, 12, count).astype(float).tolist() for count in (8, 8, 6, 9)]  # with ties
    asked = as_questions(others)
    for limit in (-1.0, 0.0, 3.0, 7.5, 10.0, 11.0, 12.0):
        shares = [np.mean([best >= limit for best in bests]) for bests in best_of_subsets(others, size)]
        assert asked.share_passing(limit, size) == pytest.approx(np.mean(shares), abs=1e-9)


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_limit_is_the_lowest_that_lets_no_larger_share_pass(size, share):
    others = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32).astype(float).tolist()
    asked = as_questions(others)
    limit = asked.limit(size, share)
    bests = best_of_subsets(others, size)

    def passing(value: float) -> float:
        return float(np.mean([np.mean([best >= value for best in row]) for row in bests]))

    assert passing(limit) <= share + 1e-12
    atoms = sorted(set(itertools.chain(*others)))
    below = max(atom for atom in atoms if atom < limit)
    assert passing(below) > share + 1e-10 and limit - below < 1e-6


def test_deep_rows_are_cut_without_a_trace():
    rows = np.random.default_rng(2).normal(size=(30, 3000)).astype(np.float32)
    asked = as_questions(rows.tolist())
    drawn = np.random.default_rng(3)
    for size in (40, 700):
        bests = np.concatenate([rows[:, drawn.choice(3000, size, replace=False)].max(1) for _ in range(400)])
        limit = float(np.quantile(bests, 0.9))
        assert asked.share_passing(limit, size) == pytest.approx(0.1, abs=0.015)


def test_identical_texts_are_pairs_and_shared_words_no_clear_non_answers():
    texts = ["a red dog", "A  red dog", "red boats", "the sea", *(f"thing{i:02d}xx" for i in range(20))]
    texts = [text.replace("0", "o").replace("1", "i") for text in texts]
    scores = np.arange(24 * 24, dtype=np.float32).reshape(24, 24) / 1000
    asked = questions(scores, np.arange(24), texts)
    assert asked.pairs[0] == scores[1, 0]  # the second picture carries the same text; its row scores higher
    assert asked.counts[0] == 24 - 3 and asked.counts[1] == 24 - 3 and asked.counts[2] == 23
    assert (
        np.allclose(asked.others[0][:21], sorted(scores[3:, 0], reverse=True)) and np.isinf(asked.others[0][21:]).all()
    )
    plain = questions(scores, np.arange(24))
    assert len(plain.pairs) == 24 and set(plain.counts) == {23} and plain.pairs[0] == scores[0, 0]
    turned = questions(scores, np.arange(24), texts, "i2t")
    assert len(turned.pairs) == 24 and turned.counts[0] == 23 - 2 and turned.counts[3] == 22
    columns = np.array([0, 0, *range(1, 23)])
    apart = questions(scores[:, [0, *range(2, 24)]], np.arange(24), texts, columns=columns)
    for left, right in zip(vars(asked).values(), vars(apart).values()):
        assert np.array_equal(left, right)


def test_words_of_every_picture_do_not_count():
    texts = [f"a photo of {a}{b}" for a in ("cat", "dog", "bird", "tree", "boat") for b in ("abc", "xyz", "uvw", "klm")]
    asked = questions(np.eye(20, dtype=np.float32), np.arange(20), texts)
    assert set(asked.counts) == {19}


def test_content_words():
    assert content_words("The Flags of two Gläser, with a bus's wheels") == {"flag", "gläser", "bus", "wheel"}
    assert content_words("of 12 in it") == frozenset()


@pytest.mark.parametrize("direction", SIDES)
def test_false_accepts_hold_on_another_draw_at_every_size(direction):
    learnt = calibrate(*world(0, 400), false_accepts=0.05)
    for gallery in (10, 60, 200, 400, 1000):
        scores, owner = world(1, 1001)
        asked = questions(scores, owner, None, direction)
        assert 0.025 < asked.share_passing(learnt.threshold(gallery, direction), gallery) < 0.085
    fixed = learnt.threshold(50, direction)
    assert asked.share_passing(fixed, 1000) > 0.3  # without the adjustment


def test_thresholds_rise_with_the_gallery_and_confidence_with_the_score():
    learnt = calibrate(*world(0))
    limits = [learnt.threshold(size) for size in (0, 1, 8, 30, 199, 200, 1000, 10**6)]
    assert limits == sorted(limits) and limits[-1] > limits[-2] > limits[-3]
    confidence, weak = learnt.judge(np.linspace(-1, 1, 50).reshape(5, 10), 200)
    assert confidence.shape == weak.shape == (5, 10)
    assert (np.diff(confidence.ravel()) >= 0).all() and 0 <= confidence.min() and confidence.max() <= 1
    assert weak.ravel().tolist() == [score < learnt.threshold(200) for score in np.linspace(-1, 1, 50)]
    assert bool(learnt.judge(1.0, 200)[1]) is False and float(learnt.judge(1.0, 200)[0]) > 0.9
    with pytest.raises(ValueError, match="no direction 'up'"):
        learnt.judge(0.3, 10, "up")


def test_confidence_is_the_share_that_is_right_on_another_draw():
    learnt = calibrate(*world(0, 600))
    bins = reliability(learnt, *world(1, 600), bins=5)
    assert sum(part.answers for part in bins) == 1200
    for part in bins:
        assert part.low <= part.confidence <= part.high
        if part.answers > 60:
            assert part.right == pytest.approx(part.confidence, abs=0.12)
    assert len(bins) >= 3


def test_scores_that_tell_nothing_or_everything_stay_finite():
    scores = np.random.default_rng(0).normal(size=(60, 60)).astype(np.float32)
    blind = calibrate(scores, np.arange(60))
    assert blind.t2i.slope >= 0 and 0 <= blind.judge(scores, 60)[0].min()
    sure = calibrate(np.eye(60, dtype=np.float32), np.arange(60))
    confidence, weak = sure.judge([0.0, 1.0], 60)
    assert confidence[0] < 0.1 and confidence[1] > 0.9 and weak.tolist() == [True, False]
    assert calibrate(np.zeros((60, 60), np.float32), np.arange(60)).judge(0.0, 60)[1]


def test_what_cannot_be_calibrated_is_said():
    with pytest.raises(CalibrationError, match="19 distinct texts are too few .* 20 or more"):
        calibrate(np.eye(19), np.arange(19))
    with pytest.raises(CalibrationError, match="50 distinct texts are too few .* 100 or more"):
        calibrate(np.eye(50), np.arange(50), false_accepts=0.01)
    with pytest.raises(CalibrationError, match="0 distinct texts"):
        calibrate(np.eye(30), np.arange(30), ["one text"] * 30)
    with pytest.raises(CalibrationError, match="above 0 and up to 0.5"):
        calibrate(np.eye(30), np.arange(30), false_accepts=0.0)
    with pytest.raises(CalibrationError, match="NaN"):
        calibrate(np.full((30, 30), np.nan), np.arange(30))
    with pytest.raises(ValueError, match="do not fit"):
        calibrate(np.eye(30), np.arange(29))


def test_it_is_kept_as_json():
    learnt = calibrate(*world(0), facts={"split": "val"})
    again = Calibration.from_dict(json.loads(json.dumps(learnt.to_dict(), allow_nan=False)))
    assert again == learnt and again.facts == {"split": "val"}
    values = learnt.to_dict()
    with pytest.raises(CalibrationError, match="format 9"):
        Calibration.from_dict({**values, "format": 9})
    with pytest.raises(CalibrationError, match="not whole: KeyError"):
        Calibration.from_dict({key: value for key, value in values.items() if key != "i2t"})
    with pytest.raises(CalibrationError, match="thresholds for"):
        Calibration.from_dict({**values, "t2i": {**values["t2i"], "thresholds": []}})


@pytest.mark.parametrize(
    "damage",
    [{"false_accepts": "x"}, {"facts": "ab"}, {"t2i": []}]
    + [{"t2i": {"thresholds": [value] * 9}} for value in (np.nan, np.inf, "high", None)]
    + [{"t2i": {"slope": "steep"}}, {"t2i": {"slope": np.nan}}, {"t2i": {"sizes": ["small"] * 9}}]
    + [{"t2i": {"sizes": [9, 8, 7, 6, 5, 4, 3, 2, 1]}}, {"t2i": {"sizes": [0, 1, 2, 3, 4, 5, 6, 7, 8]}}],
)
def test_a_damaged_calibration_is_refused(damage):
    values = calibrate(*world(0)).to_dict()
    values["t2i"] |= {"sizes": list(range(1, 10)), "thresholds": [0.1] * 9}
    assert Calibration.from_dict(values).t2i.thresholds == (0.1,) * 9
    for key, value in damage.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    with pytest.raises(CalibrationError):
        Calibration.from_dict(values)


def test_a_split_without_clear_non_answers_has_no_curve():
    learnt = calibrate(*world(0))
    scores, owner = world(1, images=30)
    assert reliability(learnt, scores, owner) != []
    assert reliability(learnt, scores, owner, ["a red flower"] * 30) == []
    assert reliability(learnt, scores[:5, :5], owner[:5]) == []


def test_a_calibration_goes_with_its_weights(training, tmp_path):
    model = AVSE(training[0])
    model.calibration = learnt = calibrate(*world(0))
    assert model.eval().train().eval().calibration == learnt  # an evaluation in between changes nothing
    with torch.no_grad():
        model.image_head.project.weight[0, 0] += 1
    assert model.train().eval().calibration is None
    model.save_pretrained(tmp_path / "other")
    assert AVSE.from_pretrained(tmp_path / "other").calibration is None


@pytest.fixture(scope="module")
def training(tmp_path_factory, tiny_config):
    """A recipe's model part, and made scenes with some 30 pictures to validate on."""
    folder = tmp_path_factory.mktemp("scenes") / "s"
    make_scenes(folder, count=260, size=32, seed=0)
    return tiny_config, {split: load_dataset(folder, split=split) for split in ("train", "val", "test")}


def test_a_training_calibrates_its_best_epoch(training, tmp_path, caplog):
    config, splits = training
    settings = TrainConfig(epochs=1, batch_size=20)
    model = AVSE(config)
    model.calibration = Calibration.from_dict(calibrate(*world(0)).to_dict())  # of other weights: must not stay
    Trainer(model, settings, progress=False).fit(splits["train"], splits["val"], out=tmp_path / "run")
    saved = AVSE.from_pretrained(tmp_path / "run" / "model")
    assert saved.calibration == model.calibration and saved.calibration.facts["images"] == splits["val"].num_images
    val = splits["val"]
    images, texts = saved.encode_images(list(val.image_paths)), saved.encode_texts(list(val.captions))
    again = calibrate(saved.similarity(images, texts), val.text_to_image, val.captions)
    assert np.allclose(again.t2i.thresholds, saved.calibration.t2i.thresholds, atol=1e-4)

    few = val.subset(range(10))
    caplog.set_level("INFO")
    Trainer(model, settings, progress=False).fit(splits["train"], few, out=tmp_path / "few")
    assert AVSE.from_pretrained(tmp_path / "few" / "model").calibration is None
    assert sum("answers will not be marked as weak" in record.message for record in caplog.records) == 1
