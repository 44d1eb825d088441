"""The heads: one process keeps the bits of nn.BatchNorm1d, padding changes nothing, no rows at all, precision."""

import pytest
import torch
from torch import nn

from avse.heads import ImageHead, TextHead, TokenBatchNorm, unit_blocks

W, D = 6, 8


def tokens_and_mask():
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]])
    return torch.randn(3, 4, W), mask


def test_one_process_has_the_bits_of_batch_norm():
    torch.manual_seed(0)
    mine, theirs = TokenBatchNorm(5), nn.BatchNorm1d(5)
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    for training in (True, True, False):
        mine.train(training), theirs.train(training)
        rows = [torch.randn(7, 5).mul(3).requires_grad_() for _ in range(2)]
        rows[1].data.copy_(rows[0].data)
        found, expected = mine(rows[0]), theirs(rows[1])
        assert torch.equal(found, expected)
        (found**3).sum().backward(), (expected**3).sum().backward()
        assert torch.equal(rows[0].grad, rows[1].grad)
        assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in mine.state_dict().items())


def test_names_of_saved_weights_stay():
    names = TextHead(W, D).state_dict().keys()
    ours = {name for name in names if name.startswith("mlp.1.")}
    assert ours == {f"mlp.1.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}


@pytest.mark.parametrize("training", [True, False])
def test_a_text_is_pooled_from_its_valid_tokens(training):
    """Against the layers one by one, on packed tokens and sentence by sentence."""
    tokens, mask = tokens_and_mask()
    head = TextHead(W, D, dropout=0.0).train(training)
    first, _, relu, second = head.mlp
    packed = tokens[mask.bool()]
    hidden = first(packed)
    mean, variance = (hidden.mean(0), hidden.var(0, correction=0)) if training else (0.0, torch.tensor(1.0))
    features = head.project(packed) + second(relu((hidden - mean) / (variance + 1e-5).sqrt()))
    expected = [head.norm(head.pool(part[None]))[0] for part in features.split(mask.sum(1).tolist())]
    assert torch.allclose(head(tokens, mask), torch.stack(expected), atol=1e-5)


def test_padding_counts_only_in_the_unmasked_batch_norm():
    tokens, mask = tokens_and_mask()
    longer, wider = torch.cat([tokens, torch.randn(3, 2, W)], 1), torch.cat([mask, torch.zeros(3, 2)], 1)
    for masked in (True, False):
        head = TextHead(W, D, dropout=0.0, masked_batch_norm=masked)
        same = torch.allclose(head(tokens, mask), head(longer, wider), atol=1e-6)
        assert same == masked
        head.eval()
        assert torch.allclose(head(tokens, mask), head(longer, wider), atol=1e-6)


@pytest.mark.parametrize("pooling", ["gpo", "mean"])
@pytest.mark.parametrize("masked", [True, False])
def test_no_rows_give_no_rows_and_gradients_of_zero(pooling, masked):
    """As for a process without a share, where the batch is smaller than the number of processes."""
    image, text = ImageHead(W, D, pooling=pooling), TextHead(W, D, masked_batch_norm=masked, pooling=pooling).eval()
    views = image.forward_views(torch.zeros(0, 5, W), torch.zeros(0, 2, 3, dtype=torch.int64), torch.ones(0, 5).bool())
    assert views.shape == (0, 2, D) and image(torch.zeros(0, 5, W)).shape == (0, D)
    texts = text(torch.zeros(0, 3, W), torch.zeros(0, 3))
    assert texts.shape == (0, D) and unit_blocks(views, 4).shape == (0, 4, 4)
    (unit_blocks(views, 4).sum() + unit_blocks(texts, 4).sum()).backward()
    for layer in (image.project, text.project, text.mlp[0], text.mlp[3]):
        assert not layer.weight.grad.any()


def test_unit_blocks_keep_what_precision_there_is():
    pooled = torch.randn(3, 2, 8, dtype=torch.float64)
    expected = torch.stack([part / part.norm(dim=-1, keepdim=True) for part in pooled.reshape(3, 16).split(4, 1)], 1)
    assert torch.allclose(unit_blocks(pooled, 4), expected, rtol=1e-14)
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        blocks = unit_blocks(pooled.to(kind), 4)
        assert blocks.dtype == torch.float32 and torch.allclose(blocks.norm(dim=-1), torch.ones(3, 4))
