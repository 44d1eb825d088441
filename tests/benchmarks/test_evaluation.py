"""The benchmark of a whole evaluation: what it measured is what the metrics say of the same random blocks."""

import os

import numpy as np
import pytest

from avse.benchmarks import units
from avse.benchmarks.evaluation import _dataset, measure_evaluation
from avse.metrics import retrieval_metrics
from avse.texts import text_groups


def test_a_small_evaluation_is_measured_in_a_process_of_its_own():
    before = dict(os.environ)
    row = measure_evaluation(60, 3, (2, 1, 8), resamples=5, threads=1)
    assert dict(os.environ) == before
    assert (row["images"], row["captions"], row["threads"]) == (60, 180, 1)
    assert row["peak_mib"] > 20 and row["seconds"] >= sum(row["parts"].values()) - 0.05
    dataset = _dataset(60, 3)
    columns = text_groups(dataset.captions)
    assert row["distinct_texts"] == len(set(dataset.captions)) == 179  # one in a hundred stands twice
    random = np.random.default_rng(0)
    images, texts = units(random, 60, 2, 8), units(random, 179, 1, 8)
    scores = np.einsum("npc,mqc->nmqp", images.astype(float), texts.astype(float)).max(-1).sum(-1)[:, columns]
    for name, folds in (("plain", 1), ("folds", 5)):
        assert row["rsum"][name] == pytest.approx(retrieval_metrics(scores, dataset.text_to_image, folds=folds).rsum)
    with pytest.raises(ValueError, match="7 images cannot be cut into 5 folds"):
        measure_evaluation(7, 3, (2, 1, 8))
