"""GPO: a naive loop, weights by length, masks, errors."""

import math

import pytest
import torch

from avse.pooling import GPO, MeanPool, position_codes


@pytest.fixture
def gpo():
    torch.manual_seed(0)
    return GPO().eval()


def naive_weights(gpo, length):
    """One set at a time, without packing, step by step through the GRU in float64."""
    gpo = gpo.double().requires_grad_(False)
    codes = torch.tensor(
        [
            [f(p / 10000 ** (2 * (i // 2) / 32)) for i in range(32) for f in [(math.sin, math.cos)[i % 2]]]
            for p in range(length)
        ],
        dtype=torch.float64,
    )
    states, _ = gpo.gru(codes[None])
    logits = [float(gpo.linear((s[:32] + s[32:]) / 2)) / 0.1 for s in states[0]]
    top = max(logits)
    total = sum(math.exp(x - top) for x in logits)
    gpo.float()
    return [math.exp(x - top) / total for x in logits]


def test_weights_equal_a_loop_and_depend_on_length_alone(gpo):
    together = gpo.weights(torch.tensor([5, 1, 9]))
    for row, length in zip(together, (5, 1, 9)):
        assert row[:length].tolist() == pytest.approx(naive_weights(gpo, length), abs=1e-5)
        assert row[length:].abs().sum() == 0 and float(row.sum()) == pytest.approx(1, abs=1e-6)


def test_pooling_equals_a_loop_with_and_without_mask(gpo):
    tokens = torch.randn(3, 6, 4)
    lengths = [6, 2, 4]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    found = gpo(tokens, mask)
    for b, length in enumerate(lengths):
        weights = naive_weights(gpo, length)
        for d in range(4):
            ordered = sorted(tokens[b, :length, d].tolist(), reverse=True)
            assert float(found[b, d]) == pytest.approx(sum(w * x for w, x in zip(weights, ordered)), abs=1e-5)
    assert torch.allclose(gpo(tokens), gpo(tokens, torch.ones(3, 6, dtype=torch.bool)), atol=1e-6)


def test_masked_positions_and_token_order_are_irrelevant(gpo):
    tokens = torch.randn(2, 5, 3)
    mask = torch.tensor([[True, False, True, True, False], [True] * 5])
    other = tokens.masked_fill(~mask[..., None], 1e4)
    assert torch.allclose(gpo(tokens, mask), gpo(other, mask), atol=1e-6)
    order = torch.randperm(5)
    assert torch.allclose(gpo(tokens, mask), gpo(tokens[:, order], mask[:, order]), atol=1e-6)
    longer = torch.cat([tokens, torch.zeros(2, 3, 3)], dim=1)
    more = torch.cat([mask, torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    assert torch.allclose(gpo(tokens, mask), gpo(longer, more), atol=1e-6)


def test_one_token_is_itself(gpo):
    tokens = torch.randn(2, 1, 7)
    assert torch.allclose(gpo(tokens), tokens[:, 0], atol=1e-6)


def test_zero_tokens_are_an_error(gpo):
    with pytest.raises(ValueError, match="zero tokens"):
        gpo(torch.zeros(2, 3, 4), torch.tensor([[True, False, False], [False] * 3]))
    with pytest.raises(ValueError, match="zero tokens"):
        gpo(torch.zeros(2, 0, 4))


def test_position_codes_by_hand():
    codes = position_codes(3, 4)
    assert codes[0].tolist() == [0.0, 1.0, 0.0, 1.0]
    assert codes[2].tolist() == pytest.approx([math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)], abs=1e-6)


def test_fast_sorted_sum_equals_torch_in_value_and_gradient(gpo):
    """float32 on the CPU takes the vectorised path: compared with torch's sort in float64, ties and signs too."""
    tokens = torch.randn(5, 13, 6)
    tokens[0, :, 0] = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 3.0, -3.0, 5.0, -7.0, 2.0, 1.0, 0.5, -0.5, 9.0])
    tokens.requires_grad_(True)
    upstream = torch.randn(5, 6)
    pooled = gpo(tokens)
    (pooled * upstream).sum().backward()
    fast = [tokens.grad.clone(), gpo.linear.weight.grad.clone()]
    reference = tokens.detach().double().requires_grad_(True)
    gpo.double().zero_grad()
    expected = gpo(reference)
    (expected * upstream).sum().backward()
    assert torch.allclose(pooled.double(), expected, atol=1e-5)
    assert torch.allclose(fast[0].double(), reference.grad, atol=1e-5)
    assert torch.allclose(fast[1].double(), gpo.linear.weight.grad, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(gpo.float()(tokens), pooled, atol=1e-6)


def test_the_mean_counts_valid_tokens_alone():
    random = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 5, 4, generator=random)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 1]]).bool()
    found = MeanPool()(tokens, mask)
    for row in range(3):
        kept = [tokens[row, k] for k in range(5) if mask[row, k]]
        torch.testing.assert_close(found[row], sum(kept) / len(kept))
    torch.testing.assert_close(MeanPool()(tokens), sum(tokens[:, k] for k in range(5)) / 5)
    with pytest.raises(ValueError, match="zero tokens"):
        MeanPool()(tokens, torch.zeros(3, 5).bool())
