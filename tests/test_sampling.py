"""Radial bias sampling: nearest cells by hand, the law of drawing without replacement, stability, determinism."""

import itertools
import math

import numpy as np
import pytest
import torch

from avse.sampling import (
    RadialBiasSampling,
    evaluation_centers,
    evaluation_views,
    kept_cells,
    mean_overlap,
    radial_bias_sample,
)


def naive_nearest(grid, center, keep):
    h, w = grid
    key = [((c // w - center // w) ** 2 + (c % w - center % w) ** 2, c) for c in range(h * w)]
    return sorted(c for _, c in sorted(key)[:keep])


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (7, 7), (4, 9), (14, 14)])
def test_nearest_takes_the_lowest_index_of_a_tie(grid):
    cells = grid[0] * grid[1]
    keep = max(1, int(0.8 * cells))
    centers = torch.arange(cells)[:, None]
    found = radial_bias_sample(grid, 1, keep, centers=centers, method="nearest")
    for center in range(cells):
        assert found[center, 0].tolist() == naive_nearest(grid, center, keep)


def test_by_hand_corner_of_three_by_three():
    found = radial_bias_sample((3, 3), 1, 4, centers=torch.tensor([[0]]), method="nearest")
    assert found.tolist() == [[[0, 1, 3, 4]]]  # distances 0, 1, 1, √2


def test_gumbel_follows_the_law_of_drawing_without_replacement():
    """On a 1x4 grid the probability of every kept pair is computed exactly and compared with 40,000 draws."""
    alpha, draws = 0.7, 40_000
    p = np.exp(-alpha * np.arange(4))
    p /= p.sum()
    expected = {}
    for a, b in itertools.permutations(range(4), 2):
        pair = tuple(sorted((a, b)))
        expected[pair] = expected.get(pair, 0) + p[a] * p[b] / (1 - p[a])
    centers = torch.zeros(draws, 1, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    found = radial_bias_sample((1, 4), 1, 2, alpha, centers=centers, generator=generator)[:, 0]
    for pair, probability in expected.items():
        share = float((found == torch.tensor(pair)).all(dim=1).double().mean())
        assert abs(share - probability) < 4.5 * math.sqrt(probability * (1 - probability) / draws), pair


def test_gumbel_is_stable_at_large_grids_and_corners():
    """float32 p reaches 0 beyond d = 26; from the corner of 24x24 the far cells lie at 32.5 and are still ordered."""
    centers = torch.zeros(64, 1, dtype=torch.int64)
    generator = torch.Generator().manual_seed(1)
    found = radial_bias_sample((24, 24), 1, 500, 4.0, centers=centers, generator=generator)[:, 0]
    assert all(len(set(row.tolist())) == 500 for row in found)
    dropped = [sorted(set(range(576)) - set(row.tolist())) for row in found]
    distance = np.hypot(*np.divmod(np.array(dropped), 24))
    assert distance.min() > 20  # only far cells are ever dropped: p does not collapse to chance where it underflows
    assert len({tuple(d) for d in dropped}) > 32  # and which of them is still random


def test_alpha_zero_and_uniform_ignore_the_centre():
    for kwargs in ({"alpha": 0.0}, {"method": "uniform"}):
        centers = torch.zeros(20_000, 1, dtype=torch.int64)
        found = radial_bias_sample((2, 3), 1, 2, centers=centers, generator=torch.Generator().manual_seed(2), **kwargs)
        counts = torch.bincount(found.flatten(), minlength=6) / 20_000
        assert (counts - 1 / 3).abs().max() < 0.015


def test_seeded_sorted_in_range_and_distinct():
    one = radial_bias_sample((5, 4), 3, 9, generator=torch.Generator().manual_seed(5), batch=6)
    two = radial_bias_sample((5, 4), 3, 9, generator=torch.Generator().manual_seed(5), batch=6)
    assert one.shape == (6, 3, 9) and one.dtype == torch.int64 and torch.equal(one, two)
    assert (one.diff(dim=-1) > 0).all() and one.min() >= 0 and one.max() < 20


def test_default_keeps_four_fifths_and_counts_as_the_authors_do():
    assert radial_bias_sample((7, 7)).shape == (1, 2, 39)  # floor(0.8 · 49)
    assert kept_cells(49, 0.8) == 39 and kept_cells(196, 0.8) == 156 and kept_cells(10, 0.3) == 3
    assert kept_cells(64, 0.9, count_prefix=True) == 58 and kept_cells(4, 1.0, count_prefix=True) == 4
    assert kept_cells(3, 0.1) == 1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"keep": 10}, "keep is 10; a 3x3 grid allows 1 to 9"),
        ({"keep": 0}, "keep is 0"),
        ({"centers": torch.zeros(2, 3, dtype=torch.int64)}, r"expected \(B, 2\)"),
        ({"centers": torch.tensor([[0, 9]])}, r"0\.\.9; cells are 0\.\.8"),
        ({"method": "best"}, "'best'; known are gumbel, nearest, uniform"),
    ],
)
def test_misuse_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        radial_bias_sample((3, 3), 2, **{"keep": 4, **kwargs})


def test_evaluation_is_fixed_and_spread():
    for grid, views in [((7, 7), 2), ((14, 14), 4), ((12, 12), 3), ((1, 5), 2)]:
        centers = evaluation_centers(grid, views)
        assert len(set(centers.tolist())) == views and int(centers.max()) < grid[0] * grid[1]
        found = evaluation_views(grid, views, 3)
        for view, center in zip(found, centers):
            assert view.tolist() == naive_nearest(grid, int(center), 3)
    sampling = RadialBiasSampling(2, 0.8, None, 4.0, "gumbel", False).eval()
    assert torch.equal(sampling((7, 7), 3)[0], sampling((7, 7), 1)[0])


def test_one_view_keeps_everything_and_training_draws():
    assert RadialBiasSampling(1, 0.3, None, 4.0, "gumbel", False)((2, 3), 4).tolist() == [[[0, 1, 2, 3, 4, 5]]] * 4
    sampling = RadialBiasSampling(2, 0.5, 1.0, 4.0, "gumbel", False)
    draws = sampling((6, 6), 8, torch.Generator().manual_seed(0))
    assert draws.shape == (8, 2, 18) and not torch.equal(draws[0], draws[1])
    assert sampling.eval()((6, 6), 8).shape == (8, 2, 36)


def test_mean_overlap_by_hand():
    views = torch.tensor([[[0, 1], [1, 2]], [[0, 1], [0, 1]]])
    assert mean_overlap(views, 4) == pytest.approx(0.75)
    assert mean_overlap(views[:, :1], 4) == 1.0


def test_two_views_of_the_defaults_share_most_cells():
    """The method's page says 84 % at keep 0.8: measured here on 14x14 with drawn centres."""
    views = radial_bias_sample((14, 14), 2, 156, generator=torch.Generator().manual_seed(0), batch=2000)
    assert 0.80 < mean_overlap(views, 196) < 0.88
