"""Streamed ranks: against a sort of the naive matrix in plain Python, and against the matrix way, bit for bit."""

import sys

import numpy as np
import pytest
import torch

from avse.ranks import count_ranks
from avse.scoring import aeom, rank_in_folds, rank_of

tiles = sys.modules["avse.scoring.tiles"]


@pytest.fixture(params=[(3, 5), (256, 1024)], ids=str)
def tile(request, monkeypatch):
    [monkeypatch.setitem(tiles.TILE, kind, request.param) for kind in tiles.PRECISIONS]


def signs(random, n, b, c):
    """Whole numbers: exact in any arithmetic, with many ties."""
    return np.where(random.random((n, b, c)) < 0.5, -1.0, 1.0).astype(np.float32)


def naive(scores, owners, columns, groups, first, last):
    """(worst, best) ranks of images and captions in the gallery first … last - 1, by loops over sets."""
    texts = [t for t in range(len(owners)) if first <= owners[t] < last]

    def is_match(image, text):
        if groups is None:
            return owners[text] == image
        return any(owners[t] == image and groups[t] == groups[text] for t in texts)

    i2t, t2i = {}, {}
    for image in range(first, last):
        own = [t for t in texts if is_match(image, t)]
        if any(owners[t] == image for t in texts):
            bar = max(scores[image, columns[t]] for t in own)
            others = [scores[image, columns[t]] for t in texts if t not in own]
            i2t[image] = sum(s >= bar for s in others), sum(s > bar for s in others)
    for text in texts:
        own = [i for i in range(first, last) if is_match(i, text)]
        bar = max(scores[i, columns[text]] for i in own)
        others = [scores[i, columns[text]] for i in range(first, last) if i not in own]
        t2i[text] = sum(s >= bar for s in others), sum(s > bar for s in others)
    return i2t, t2i


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_equals_loops(tile, grouped, seed):
    random = np.random.default_rng(seed)
    n = 12
    owners = np.sort(np.concatenate([np.arange(n), random.integers(0, n, 20)]))  # uneven numbers of captions
    if seed % 2:
        random.shuffle(owners)
    columns = random.integers(0, 15, len(owners))
    _, columns = np.unique(columns, return_inverse=True)
    images, texts = signs(random, n, 3, 4), signs(random, columns.max() + 1, 2, 4)
    groups = columns if grouped else None
    scores = np.einsum("npc,mqc->nmpq", images.astype(int), texts.astype(int)).max(2).sum(-1)
    found = rank_in_folds(images, texts, owners, (1, 3), columns=columns, groups=groups)
    for ranks, folds in zip(found, (1, 3)):
        size, i2t, t2i = n // folds, {}, {}
        for first in range(0, n, size):
            more = naive(scores, owners, columns, groups, first, first + size)
            i2t |= more[0]
            t2i |= more[1]
        assert ranks.image_of_query.tolist() == sorted(i2t)
        assert ranks.i2t.tolist() == [i2t[i][0] for i in sorted(i2t)]
        assert ranks.i2t_optimistic.tolist() == [i2t[i][1] for i in sorted(i2t)]
        assert ranks.t2i.tolist() == [t2i[t][0] for t in range(len(owners))]
        assert ranks.t2i_optimistic.tolist() == [t2i[t][1] for t in range(len(owners))]
        assert len(ranks.fold_starts) == folds


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equals_the_matrix_to_the_last_bit(precision):
    """Float scores with equal pictures among them, larger than a tile."""
    random = np.random.default_rng(0)

    def unit(n, b):
        rows = random.standard_normal((n, b, 16), dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=-1, keepdims=True)

    images, texts = unit(600, 4), unit(1800, 2)
    images[500:] = images[:100]
    owners = np.repeat(np.arange(600), 3)
    matrix = aeom(images, texts, precision)
    for folds in (1, 5):
        ranks = rank_of(images, texts, owners, folds=folds, precision=precision)
        expected = count_ranks(matrix, owners, np.arange(1800), folds=folds)
        for name in ("i2t", "t2i", "i2t_optimistic", "t2i_optimistic", "image_of_query", "fold_starts"):
            assert (getattr(ranks, name) == getattr(expected, name)).all(), name
    assert (ranks.t2i != rank_of(images, texts, owners).t2i).any()


def test_torch_in_and_bad_calls():
    random = np.random.default_rng(0)
    images, texts = signs(random, 4, 2, 3), signs(random, 8, 2, 3)
    owners = np.repeat(np.arange(4), 2)
    one = rank_of(images, texts, owners)
    two = rank_of(torch.from_numpy(images), torch.from_numpy(texts).double().float(), torch.from_numpy(owners))
    assert (one.i2t == two.i2t).all() and (one.t2i == two.t2i).all()
    half = [torch.from_numpy(blocks).bfloat16() for blocks in (images, texts)]
    for gradient in (False, True):  # signs are exact in half of the bits too
        three = rank_of(half[0].requires_grad_(gradient), half[1], owners)
        assert (one.i2t == three.i2t).all() and (one.t2i == three.t2i).all()
    for side, row in ((0, 3), (1, 5)):
        spoilt = [images.copy(), texts.copy()]
        spoilt[side][row, 0] = np.nan
        with np.errstate(invalid="ignore"), pytest.raises(ValueError, match="NaN"):
            rank_of(*spoilt, owners)
    with pytest.raises(ValueError, match="0 to 4"):
        rank_of(images, texts, owners + 1)
    with pytest.raises(ValueError, match="7 captions, 8 columns"):
        rank_of(images, texts, owners[:-1])
    with pytest.raises(ValueError, match="whole numbers"):
        rank_of(images, texts, owners / 2)
    with pytest.raises(ValueError, match="folds"):
        rank_of(images, texts, owners, folds=3)
    with pytest.raises(ValueError, match="not 0"):
        rank_of(images, texts[:0], [])
    with pytest.raises(ValueError, match="fp32 or bf16"):
        rank_of(images, texts, owners, precision="int8")
