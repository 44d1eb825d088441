"""The objectives: hand-computed cases, naive loops in float64, masks, batches without negatives, the floor of L_reg."""

import math

import numpy as np
import pytest
import torch

from avse.losses import (
    CrossViewDecorrelationLoss,
    HardNegativeTripletLoss,
    InfoNCE,
    true_matches,
    violation_rate,
)


def naive_hinge(scores, matches, margin, hardest):
    n = len(scores)
    total = 0.0
    for i in range(n):
        row = [max(0.0, margin + scores[i][j] - scores[i][i]) for j in range(n) if not matches[i][j]]
        column = [max(0.0, margin + scores[j][i] - scores[i][i]) for j in range(n) if not matches[j][i]]
        for costs in (row, column):
            total += (max(costs, default=0.0)) if hardest else sum(costs)
    return total


def naive_infonce(scores, matches, temperature):
    n = len(scores)
    total = 0.0
    for i in range(n):
        row = sum(math.exp(scores[i][j] / temperature) for j in range(n) if j == i or not matches[i][j])
        column = sum(math.exp(scores[j][i] / temperature) for j in range(n) if j == i or not matches[j][i])
        total -= 2 * scores[i][i] / temperature - math.log(row) - math.log(column)
    return total / (2 * n)


def test_hinge_by_hand():
    scores = torch.tensor([[0.5, 0.4], [0.6, 0.7]])
    eye = torch.eye(2, dtype=torch.bool)
    # texts: 0.2+0.4-0.5 = 0.1; 0.2+0.6-0.7 = 0.1; images: 0.2+0.6-0.5 = 0.3; 0.2+0.4-0.7 < 0
    assert float(HardNegativeTripletLoss(0.2)(scores, eye)) == pytest.approx(0.5, abs=1e-6)
    assert float(HardNegativeTripletLoss(0.2, hardest=False)(scores, eye)) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_equal_naive_loops_in_float64(seed):
    torch.manual_seed(seed)
    scores = torch.randn(9, 9, dtype=torch.float64) * 0.3
    matches = torch.eye(9, dtype=torch.bool) | (torch.rand(9, 9) < 0.2)
    for hardest in (True, False):
        found = HardNegativeTripletLoss(0.2, hardest)(scores, matches)
        assert float(found) == pytest.approx(naive_hinge(scores.tolist(), matches.tolist(), 0.2, hardest), rel=1e-12)
    found = InfoNCE(0.07)(scores, matches)
    assert float(found) == pytest.approx(naive_infonce(scores.tolist(), matches.tolist(), 0.07), rel=1e-6)


def test_all_masked_costs_nothing_and_collapse_costs_two_margins_a_pair():
    scores = torch.randn(4, 4)
    everything = torch.ones(4, 4, dtype=torch.bool)
    assert float(HardNegativeTripletLoss()(scores, everything)) == 0
    assert float(InfoNCE()(scores, everything)) == pytest.approx(0, abs=1e-6)
    assert float(HardNegativeTripletLoss(0.2)(torch.zeros(8, 8), torch.eye(8, dtype=torch.bool))) == pytest.approx(3.2)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_batch_without_negatives_costs_nothing_and_moves_nothing(size, kind):
    everything = torch.ones(size, size, dtype=torch.bool)
    for loss in (HardNegativeTripletLoss(), HardNegativeTripletLoss(hardest=False), InfoNCE(learnable=True)):
        scores = torch.randn(size, size).to(kind).requires_grad_()
        found = loss(scores, everything)
        found.backward()
        assert float(found.detach()) == 0 and not scores.grad.any()
        assert all(not parameter.grad.any() for parameter in loss.parameters())
    assert float(violation_rate(scores, everything, 0.2)) == 0


@pytest.mark.parametrize("form", ["correct", "official"])
@pytest.mark.parametrize("row", [[0.0, 0.0, 0.0], [1.0, -2.0, 0.1]])
def test_equal_rows_have_finite_decorrelation_and_gradient(form, row):
    """As all pairs of one picture give, or embeddings that collapsed; in `correct` nothing says which way is out."""
    views = torch.tensor(row, dtype=torch.float64).repeat(4, 2, 1).requires_grad_()
    found = CrossViewDecorrelationLoss(form=form)(views)
    found.backward()
    assert torch.isfinite(found) and torch.isfinite(views.grad).all()
    if form == "correct":
        assert float(found.detach()) == pytest.approx(1) and float(views.grad.abs().max()) < 1e-9
    assert float(CrossViewDecorrelationLoss(form=form)(views[:1])) == 0  # one row has no correlation


def test_half_precision_is_computed_in_fp32():
    torch.manual_seed(0)
    eye = torch.eye(6, dtype=torch.bool)
    for kind in (torch.bfloat16, torch.float16):
        scores = (torch.randn(6, 6) * 0.3 - 5).to(kind)  # negative: a mask of 0 would win every maximum
        for loss in (HardNegativeTripletLoss(), HardNegativeTripletLoss(hardest=False), InfoNCE(0.07)):
            assert loss(scores, eye).dtype == torch.float32
            assert torch.equal(loss(scores, eye), loss(scores.float(), eye))
        assert violation_rate(scores, eye, 0.1) == violation_rate(scores.float(), eye, 0.1)
        views = torch.randn(5, 2, 3).to(kind)
        assert torch.equal(CrossViewDecorrelationLoss()(views), CrossViewDecorrelationLoss()(views.float()))


@pytest.mark.parametrize("seed", range(5))
def test_violation_rate_equals_a_naive_loop(seed):
    torch.manual_seed(seed)
    scores = torch.randn(9, 9) * 0.3 - 2
    matches = torch.eye(9, dtype=torch.bool) | (torch.rand(9, 9) < 0.3)
    matches[2] = True  # a query without negatives
    s, m = scores.double().tolist(), matches.tolist()
    violated = 0
    for i in range(9):
        violated += any(s[i][j] + 0.2 > s[i][i] for j in range(9) if not m[i][j])
        violated += any(s[j][i] + 0.2 > s[i][i] for j in range(9) if not m[j][i])
    assert float(violation_rate(scores, matches, 0.2)) == pytest.approx(violated / 18)
    assert float(violation_rate(torch.zeros(8, 8), torch.eye(8, dtype=torch.bool), 0.2)) == 1  # collapse
    assert float(violation_rate(torch.eye(8), torch.eye(8, dtype=torch.bool), 0.2)) == 0
    at_the_margin = torch.tensor([[0.5, 0.25], [0.25, 0.5]])
    assert float(violation_rate(at_the_margin, torch.eye(2, dtype=torch.bool), 0.25)) == 0
    equal = torch.full((2, 2), 4.0, dtype=torch.bfloat16)  # which has no 4.001
    assert float(violation_rate(equal, torch.eye(2, dtype=torch.bool), 0.001)) == 1


def test_masked_twin_changes_nothing_at_all():
    torch.manual_seed(0)
    scores = torch.randn(5, 5)
    matches = torch.eye(5, dtype=torch.bool)
    matches[0, 3] = matches[3, 0] = True
    harder = scores.clone()
    harder[0, 3] = harder[3, 0] = 50.0
    for loss in (HardNegativeTripletLoss(), HardNegativeTripletLoss(hardest=False), InfoNCE()):
        assert float(loss(scores, matches)) == float(loss(harder, matches))


def test_true_matches_by_image_and_by_identical_text():
    found = true_matches(["x", "y", "x", "z"], ["a dog", "A  DOG ", "a cat", "a dog."])
    assert found.int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


def test_temperature_is_learnt_only_when_asked():
    assert not InfoNCE(0.05).log_scale.requires_grad
    loss = InfoNCE(0.05, learnable=True)
    loss(torch.randn(4, 4), torch.eye(4, dtype=torch.bool)).backward()
    assert loss.log_scale.grad is not None and float(loss.log_scale.detach().exp()) == pytest.approx(20)


def test_no_temperature_is_below_a_hundredth():
    torch.manual_seed(0)
    scores, eye = torch.randn(5, 5, dtype=torch.float64) * 0.05, torch.eye(5, dtype=torch.bool)
    expected = naive_infonce(scores.tolist(), eye.tolist(), 0.01)
    assert float(InfoNCE(0.001)(scores, eye)) == pytest.approx(expected, rel=1e-5)


def test_what_infonce_makes_lies_where_the_scores_lie():
    loss, scores, eye = InfoNCE(), torch.eye(3), torch.eye(3, dtype=torch.bool)
    with torch.device("meta"):  # the default for what names no device
        found = loss(scores, eye)
    assert found.device.type == "cpu" and torch.equal(found, loss(scores, eye))


def naive_decorrelation(views, weight, official):
    views = views.astype(np.float64)
    b, v, d = views.shape
    if official:
        views = views / np.linalg.norm(views, axis=-1, keepdims=True)
        columns = views / np.sqrt((views**2).sum(0))
    else:
        columns = (views - views.mean(0)) / (views.std(0) + 1e-5)
    values = []
    for i in range(v):
        for j in range(i + 1, v):
            total = 0.0
            for x in range(d):
                for y in range(d):
                    m = float(columns[:, i, x] @ columns[:, j, y]) / b
                    total += (m - 1) ** 2 if x == y else weight * m * m
            values.append(total if official else total / d)
    return float(np.mean(values))


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("views", [2, 3])
def test_decorrelation_equals_a_naive_loop(official, views):
    x = np.random.default_rng(views).standard_normal((7, views, 5))
    loss = CrossViewDecorrelationLoss(0.01, "official" if official else "correct")
    assert float(loss(torch.from_numpy(x))) == pytest.approx(naive_decorrelation(x, 0.01, official), rel=1e-9)


def test_decorrelation_of_equal_and_single_views():
    x = torch.randn(50, 1, 4, dtype=torch.float64)
    loss = CrossViewDecorrelationLoss(0.0)
    assert float(loss(x)) == 0
    assert float(loss(x.expand(-1, 2, -1))) == pytest.approx(0, abs=1e-8)  # the diagonal is all ones
    assert torch.isfinite(CrossViewDecorrelationLoss()(torch.ones(4, 2, 3)))  # constant dimensions divide by 1e-5


def test_the_floor_is_reached_and_never_passed():
    """With B ≤ D the centred batch has rank B-1 at most; equal views whose columns span it evenly reach the floor."""
    loss = CrossViewDecorrelationLoss(0.005)
    batch, width = 8, 32
    floor = loss.floor(batch, width)
    assert floor == pytest.approx(0.005 * (32**2 / 7 - 32) / 32)
    basis = np.linalg.qr(np.concatenate([np.ones((8, 1)), np.random.default_rng(0).standard_normal((8, 7))], axis=1))[0]
    hadamard = basis[:, 1:]  # 7 centred orthonormal columns
    even = np.tile(hadamard, (1, 5))[:, :28]  # 28 = 4 · 7 columns, each direction four times
    views = torch.from_numpy(even)[:, None].expand(-1, 2, -1)
    expected = loss.floor(8, 28)
    assert float(loss(views)) == pytest.approx(expected, rel=1e-3)
    for seed in range(5):
        torch.manual_seed(seed)
        x = torch.randn(batch, width, dtype=torch.float64)[:, None].expand(-1, 2, -1)
        assert float(loss(x)) >= floor - 1e-9
    assert loss.floor(100, 32) == 0 and CrossViewDecorrelationLoss(form="official").floor(8, 32) == 0


def test_the_floor_at_its_ends():
    loss = CrossViewDecorrelationLoss(0.3)
    assert loss.floor(1, 4) == 0  # one row: no correlation, no cost
    assert loss.floor(2, 4) == pytest.approx(0.3 * (16 / 1 - 4) / 4)
    assert loss.floor(4, 4) == pytest.approx(0.3 * (16 / 3 - 4) / 4)
    assert loss.floor(5, 4) == 0  # five centred rows have rank 4: four dimensions can be uncorrelated


def test_the_defaults_are_those_of_the_papers():
    torch.manual_seed(0)
    scores, eye, views = torch.randn(5, 5), torch.eye(5, dtype=torch.bool), torch.randn(5, 2, 3)
    assert torch.equal(HardNegativeTripletLoss()(scores, eye), HardNegativeTripletLoss(0.2, True)(scores, eye))
    assert torch.equal(InfoNCE()(scores, eye), InfoNCE(0.05, learnable=False)(scores, eye))
    assert torch.equal(CrossViewDecorrelationLoss()(views), CrossViewDecorrelationLoss(0.005, "correct")(views))
