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


def naive(gpo, tokens, mask=None):
    """Sort and sum set by set and dimension by dimension in float64; the weights are the GPO's own."""
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
    sums = []
    for set_, valid in zip(tokens.double(), mask):
        kept = set_[valid]
        weights = gpo.weights(torch.tensor([len(kept)]))[0].double()
        sums.append(torch.stack([column.sort(descending=True, stable=True).values @ weights for column in kept.T]))
    return torch.stack(sums)


MASKS = {
    "all": None,
    "right": [[1] * 9, [1] * 4 + [0] * 5, [1] + [0] * 8],
    "any": [[0, 1, 1] * 3, [1] * 9, [0] * 8 + [1]],
}


@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize(
    ("dtype", "error"),
    [(torch.float32, 1e-6), (torch.bfloat16, 2**-8), (torch.float16, 2**-10), (torch.float64, 1e-12)],
)
def test_every_precision_equals_the_naive_way_in_value_and_gradient(gpo, dtype, error, masked):
    mask = None if MASKS[masked] is None else torch.tensor(MASKS[masked]).bool()
    gpo = gpo.double() if dtype == torch.float64 else gpo
    distinct = [torch.randperm(64)[:9] / 8 - 4 for _ in range(15)]  # bf16 has them all, and no ties
    tokens = torch.stack(distinct).reshape(3, 5, 9).transpose(1, 2).to(dtype).requires_grad_()
    upstream = torch.randn(3, 5)
    found = gpo(tokens, mask)
    assert found.dtype == dtype
    (found * upstream.to(dtype)).sum().backward()
    here = [tokens.grad.double(), gpo.linear.weight.grad.clone().double()]
    with torch.no_grad():
        assert torch.equal(gpo(tokens, mask), found)
    gpo.zero_grad()
    reference = tokens.detach().double().requires_grad_()
    expected = naive(gpo, reference, mask)
    (expected * upstream.to(dtype).double()).sum().backward()
    there = [reference.grad, gpo.linear.weight.grad.double()]
    for one, other in zip([found.double(), *here], [expected, *there]):
        torch.testing.assert_close(one, other, rtol=4 * error, atol=4 * error * float(other.abs().max()))


@pytest.mark.parametrize("masked", MASKS)
def test_float32_keeps_the_bits_of_the_plain_sort(gpo, masked):
    """Histories of trainings stand on them: torch's own sort, the same sums."""
    mask = None if MASKS[masked] is None else torch.tensor(MASKS[masked]).bool()
    tokens = torch.randn(3, 9, 64)
    columns = tokens.transpose(1, 2)
    if mask is None:
        expected = columns.sort(dim=-1).values @ gpo.weights(torch.tensor([9]))[0].flip(0)
    else:
        distinct, which = torch.unique(mask.sum(dim=1), return_inverse=True)
        weights = gpo.weights(distinct)[which]
        ordered = columns.masked_fill(~mask[:, None], -1e30).sort(dim=-1, descending=True).values
        expected = (ordered.masked_fill(weights[:, None] == 0, 0.0) * weights[:, None]).sum(dim=-1)
    assert torch.equal(gpo(tokens, mask), expected)


@pytest.mark.parametrize("masked", MASKS)
def test_gradients_by_differences(gpo, masked):
    mask = None if MASKS[masked] is None else torch.tensor(MASKS[masked]).bool()
    tokens = torch.randn(3, 9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: gpo.double()(values, mask), tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_share_out_one_gradient_each(gpo, dtype):
    """Equal values, zeros of both signs among them, get the weights of their places, each once."""
    column = torch.tensor([2.0, 0.0, 2.0, -0.0, 2.0, -1.0])
    tokens = column[None, :, None].to(dtype).requires_grad_()
    for mask in (None, torch.ones(1, 6, dtype=torch.bool)):
        tokens.grad = None
        gpo(tokens, mask).sum().backward()
        found, weights = tokens.grad[0, :, 0].float(), gpo.weights(torch.tensor([6]))[0].to(dtype).float()
        assert sorted(found[[0, 2, 4]].tolist()) == pytest.approx(sorted(weights[:3].tolist()))
        assert sorted(found[[1, 3]].tolist()) == pytest.approx(sorted(weights[3:5].tolist()))
        assert float(found[5]) == pytest.approx(float(weights[5]))


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_sorted_away(gpo, dtype, value, graph):
    tokens = torch.randn(2, 6, 3).to(dtype)
    tokens[0, 1, 2] = value
    mask = torch.tensor([[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 0]]).bool()
    with torch.set_grad_enabled(graph):
        for found in (gpo(tokens.requires_grad_(graph)), gpo(tokens, mask)):
            assert torch.isfinite(found).tolist() == [[True, True, False], [True] * 3]
            assert not math.isnan(value) or bool(found[0, 2].isnan())
    hidden = tokens.detach().clone()
    hidden[0, 1, 2], hidden[0, 2, 2] = 0.0, value
    assert torch.isfinite(gpo(hidden, mask)).all(), "what the mask leaves out does not count"


def test_nan_counts_where_the_softmax_leaves_its_place_nothing(gpo):
    with torch.no_grad():
        gpo.linear.weight.mul_(1e4)
    lengths = torch.tensor([6])
    assert bool((gpo.weights(lengths) == 0).any())
    tokens = torch.randn(1, 8, 3)
    tokens[0, 2] = math.nan
    assert gpo(tokens, torch.arange(8)[None] < lengths).isnan().all() and gpo(tokens).isnan().all()


def test_autocast_leaves_the_weights_alone_and_sums_in_float32(gpo):
    tokens = torch.randn(2, 150, 4, dtype=torch.bfloat16)
    lengths, plain = torch.tensor([3, 150]), gpo(tokens)
    weights = gpo.weights(lengths)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gpo.weights(lengths), weights) and torch.equal(gpo(tokens), plain)
    assert torch.equal(plain, naive(gpo, tokens).to(torch.bfloat16))


def test_more_tokens_than_places_have_numbers(gpo):
    tokens = torch.randn(1, 33000, 2, requires_grad=True)
    short = torch.arange(33000)[None] < 5
    torch.testing.assert_close(gpo(tokens, short), gpo(tokens[:, :5]))
    gpo(tokens, short).sum().backward()
    assert bool((tokens.grad[0, :5] != 0).all()) and not bool(tokens.grad[0, 5:].any())


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
