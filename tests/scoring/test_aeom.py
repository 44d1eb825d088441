"""S = Σ_j max_i <v_i, t_j>: against a naive loop in float64, by hand, by properties."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avse.scoring import aeom, block_matches


def blocks(random, n, p, c):
    x = random.standard_normal((n, p, c))
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def naive(images, texts):
    out = np.zeros((len(images), len(texts)))
    for i, image in enumerate(images.astype(np.float64)):
        for j, text in enumerate(texts.astype(np.float64)):
            for t in text:
                out[i, j] += max(float(v @ t) for v in image)
    return out


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (3, 4, 4, 2, 8), (7, 2, 8, 4, 32), (5, 9, 1, 3, 5), (2, 1, 3, 1, 2)]
)
def test_equals_naive_loop(shape):
    n, m, p, q, c = shape
    random = np.random.default_rng(sum(shape))
    images, texts = blocks(random, n, p, c), blocks(random, m, q, c)
    expected = naive(images, texts)
    assert np.abs(aeom(images, texts) - expected).max() < 1e-6
    found = aeom(torch.from_numpy(images), torch.from_numpy(texts))
    assert isinstance(found, torch.Tensor) and np.abs(found.numpy() - expected).max() < 1e-6
    match = block_matches(images, texts)
    assert np.abs(match.scores.sum(-1) - expected).max() < 1e-6
    best = np.einsum("npc,mqc->nmpq", images.astype(float), texts.astype(float))
    picked = np.take_along_axis(best, match.blocks[:, :, None, :], axis=2)[:, :, 0]
    assert np.abs(picked - best.max(axis=2)).max() < 1e-6


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("gradient", [False, True])
def test_scores_of_half_types_are_float32(kind, precision, gradient):
    random = np.random.default_rng(1)
    images, texts = (torch.from_numpy(blocks(random, n, b, 64)).to(kind) for n, b in ((20, 4), (30, 4)))
    found = aeom(images.requires_grad_(gradient), texts, precision)
    assert found.dtype == (torch.float64 if kind == torch.float64 else torch.float32)
    expected = naive(images.detach().double().numpy(), texts.double().numpy())
    exact = kind in (torch.float32, torch.float64) and precision == "fp32"
    assert np.abs(found.detach().numpy() - expected).max() < (1e-6 if exact else 5e-3)
    if kind == torch.float16 and not gradient:
        assert aeom(images.numpy(), texts.numpy()).dtype == np.float32


def test_negative_cosines_stay_negative():
    image, text = np.array([[[-1.0, 0.0]]]), np.array([[[1.0, 0.0], [0.6, 0.8]]])
    assert aeom(image, text).tolist() == [[-1.6]]


def test_tiling_changes_nothing(monkeypatch):
    random = np.random.default_rng(0)
    images, texts = blocks(random, 11, 4, 8), blocks(random, 5, 2, 8)
    whole = aeom(images, texts)
    monkeypatch.setattr(sys.modules["avse.scoring.aeom"], "TILE", (3, 4))
    assert np.allclose(aeom(images, texts), whole, atol=1e-6)
    assert np.allclose(aeom(torch.from_numpy(images), torch.from_numpy(texts)).numpy(), whole, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5), st.integers(1, 9))
def test_block_order_is_irrelevant_and_range_is_q(seed, p, q, c):
    random = np.random.default_rng(seed)
    images, texts = blocks(random, 3, p, c), blocks(random, 4, q, c)
    scores = aeom(images, texts)
    mixed = aeom(images[:, random.permutation(p)], texts[:, random.permutation(q)])
    assert np.abs(scores - mixed).max() < 1e-5
    assert np.abs(scores).max() <= q + 1e-5


def test_one_block_each_is_the_cosine():
    random = np.random.default_rng(3)
    images, texts = blocks(random, 6, 1, 16), blocks(random, 4, 1, 16)
    assert np.allclose(aeom(images, texts), images[:, 0] @ texts[:, 0].T, atol=1e-6)


def test_not_symmetric():
    random = np.random.default_rng(4)
    one, two = blocks(random, 2, 4, 8), blocks(random, 3, 4, 8)
    assert not np.allclose(aeom(one, two), aeom(two, one).T)


def test_gradient_flows_to_the_best_block_only():
    image = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]], requires_grad=True)
    text = torch.tensor([[[0.8, 0.6]]])
    aeom(image, text).sum().backward()
    assert torch.allclose(image.grad, torch.tensor([[[0.8, 0.6], [0.0, 0.0]]]))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(2, 4, 8\).*\(3, 2, 6\)"):
        aeom(np.zeros((2, 4, 8)), np.zeros((3, 2, 6)))
    with pytest.raises(ValueError, match=r"\(4, 8\)"):
        aeom(np.zeros((4, 8)), np.zeros((3, 2, 8)))
    with pytest.raises(ValueError, match="no blocks"):
        aeom(np.zeros((2, 0, 8)), np.zeros((3, 2, 8)))


def test_nothing_scored_is_empty_and_numpy_needs_no_torch():
    assert aeom(np.zeros((0, 2, 4)), np.zeros((3, 2, 4))).shape == (0, 3)
    code = "import sys, numpy as np; from avse.scoring import aeom; aeom(np.ones((1,1,1)), np.ones((1,1,1)));"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
