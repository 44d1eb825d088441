"""SCAN's cross-attention in three ways against naive loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from avse.benchmarks.scan import scan_by_caption, scan_by_gram, scan_by_pairs


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def pair():
    random = np.random.default_rng(3)
    return unit(random.standard_normal((3, 5, 8))), unit(random.standard_normal((4, 6, 8)))


def naive(regions, words, aggregate):
    """One region, one word at a time."""
    scores = np.zeros((len(regions), len(words)))
    for n, image in enumerate(regions):
        for m, text in enumerate(words):
            bent = [[(s if s > 0 else 0.1 * s) for s in (float(v @ t) for t in text)] for v in image]
            normed = [[s / math.sqrt(sum(x * x for x in row)) for s in row] for row in bent]
            relevance = []
            for j, word in enumerate(text):
                raised = [math.exp(9 * row[j]) for row in normed]
                attended = sum(e / sum(raised) * image[g] for g, e in enumerate(raised))
                relevance.append(float(word @ attended) / math.sqrt(float(attended @ attended)))
            if aggregate == "mean":
                scores[n, m] = sum(relevance) / len(relevance)
            else:
                scores[n, m] = math.log(sum(math.exp(6 * r) for r in relevance)) / 6
    return scores


@pytest.mark.parametrize("aggregate", ["lse", "mean"])
@pytest.mark.parametrize("way", [scan_by_caption, scan_by_pairs, scan_by_gram])
def test_every_way_is_the_naive_loop(pair, way, aggregate):
    regions, words = pair
    truth = naive(regions, words, aggregate)
    found = way(torch.from_numpy(regions), torch.from_numpy(words), aggregate)
    assert np.abs(found.numpy() - truth).max() < 1e-12
    single = way(torch.from_numpy(regions).float(), torch.from_numpy(words).float(), aggregate)
    assert np.abs(single.numpy() - truth).max() < 1e-5


def test_a_word_that_is_a_region_is_found(pair):
    regions, _ = pair
    # One region alone in its picture: the attended vector is that region, whatever the weights.
    found = scan_by_caption(torch.from_numpy(regions[:1, :1]), torch.from_numpy(regions[:1, :1]), "mean")
    assert float(found) == pytest.approx(1.0, abs=1e-12)
