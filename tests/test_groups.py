"""Group sampling: against a loop over images and tokens, its gradient by hand, ties, masks, and inside a model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from avse import AVSE
from avse.config import ConfigError, ModelConfig, load_recipe, parse
from avse.groups import GATE_WIDTH, GroupSampling


def regions_model(sampling: str = "groups", views: int = 3, keep: float = 0.8, **settings: object) -> AVSE:
    torch.manual_seed(0)
    values = {
        "image_encoder": {"source": "regions", "width": 12, "num_regions": 9},
        "text_encoder": {"source": "bigru", "vectors": None, "hidden": 8},
        "num_views": views, "embed_dim": 8, "block_width": 4, "sampling": sampling, "keep": keep, **settings,
    }  # fmt: skip
    return AVSE(parse(ModelConfig, values), captions=["a red dog", "two birds"])


def chosen_by_loop(tokens: np.ndarray, features: np.ndarray, valid: np.ndarray, keep: float) -> list[list[list[int]]]:
    """For each image and token the indices of the nearest share of the valid features, float64, one by one."""
    chosen = []
    for image, mask in zip(features.astype(np.float64), valid):
        places = [i for i in range(len(image)) if mask[i]]
        count = max(1, math.floor(keep * len(places) + 1e-9))
        views = []
        for token in tokens.astype(np.float64):
            near = {i: image[i] @ token / np.linalg.norm(image[i]) / np.linalg.norm(token) for i in places}
            views.append(sorted(sorted(places, key=lambda i, near=near: -near[i])[:count]))
        chosen.append(views)
    return chosen


@pytest.mark.parametrize("keep", [0.8, 0.3, 1.0, 0.01])
def test_the_choice_is_that_of_a_loop(keep):
    torch.manual_seed(1)
    groups, features = GroupSampling(6, 20, keep).eval(), torch.randn(5, 11, 20)
    mask = torch.rand(5, 11) < 0.7
    mask[0] = True
    mask[1] = False
    mask[1, 4] = True
    everywhere = torch.ones_like(mask)
    tokens = groups.tokens.detach().numpy()
    for seen in (everywhere, mask):
        with torch.no_grad():
            views, factors = groups(features, None if seen is everywhere else seen)
        assert factors is None
        expected = chosen_by_loop(tokens, features.numpy(), seen.numpy(), keep)
        assert views.shape == (5, 6, max(len(view) for image in expected for view in image))
        for image in range(5):
            found = [[i for i in view if seen[image, i]] for view in views[image].tolist()]
            assert found == expected[image]
            assert all(len(view) == len(set(view)) for view in found)


def test_ties_fall_to_the_lowest_index_and_neighbours_change_nothing():
    torch.manual_seed(2)
    groups = GroupSampling(3, 2048, 0.5).eval()
    same = torch.randn(2048).expand(1, 36, 2048)
    with torch.no_grad():
        assert groups(same)[0].tolist() == [[list(range(18))] * 3]
        features = torch.randn(7, 36, 2048)
        features[:, 20:] = features[:, :16]  # sixteen exact ties
        whole = groups(features)[0]
        for image in range(7):
            assert torch.equal(groups(features[image : image + 1])[0][0], whole[image])


def test_the_factor_is_one_and_its_gradient_that_of_the_sigmoid():
    torch.manual_seed(3)
    groups, features = GroupSampling(2, 5, 0.5), torch.randn(3, 6, 5, requires_grad=True)
    views, factors = groups(features)
    assert torch.equal(factors, torch.ones(3, 2, 3))
    weights = torch.randn(3, 2, 3)
    (factors * weights).sum().backward()
    assert features.grad is None  # the tokens alone learn by it

    def relaxed(tokens: torch.Tensor) -> torch.Tensor:
        near = torch.nn.functional.cosine_similarity(tokens[None, :, None], features.double()[:, None], dim=-1)
        cut = near.detach().topk(3, dim=-1).values[..., -1:]
        return (torch.sigmoid((near.gather(2, views) - cut) / GATE_WIDTH) * weights).sum()

    tokens = groups.tokens.detach().double().requires_grad_()
    [expected] = torch.autograd.grad(relaxed(tokens), tokens)
    torch.testing.assert_close(groups.tokens.grad.double(), expected, rtol=1e-4, atol=1e-6)
    assert expected.abs().min() > 0
    step = 1e-6  # and the gradient is a difference quotient's
    moved = tokens.detach().clone()
    moved[1, 2] += step
    cut = torch.nn.functional.cosine_similarity(tokens[None, :, None], features.double()[:, None], dim=-1)
    cut = cut.topk(3, dim=-1).values[..., -1:].detach()

    def at(values: torch.Tensor) -> float:
        near = torch.nn.functional.cosine_similarity(values[None, :, None], features.double()[:, None], dim=-1)
        return float((torch.sigmoid((near.gather(2, views) - cut) / GATE_WIDTH) * weights).sum().detach())

    assert (at(moved) - at(tokens)) / step == pytest.approx(float(expected[1, 2]), rel=1e-3)


def test_a_model_pools_what_its_tokens_take():
    model = regions_model().eval()
    features = torch.randn(4, 9, 12)
    chosen = chosen_by_loop(model.groups.tokens.detach().numpy(), features.numpy(), np.ones((4, 9), bool), 0.8)
    with torch.no_grad():
        views = model.embed_views(features)
        for image in range(4):
            for view in range(3):
                expected = model.image_head(features[image, chosen[image][view]][None])[0]
                torch.testing.assert_close(views[image, view], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(views, model.embed_views(features))
        given = model.embed_views(features, None, torch.tensor(chosen))
        torch.testing.assert_close(given, views)
    assert model.embed_features(features).shape == (4, 6, 4)


def test_masked_features_change_nothing():
    model = regions_model(keep_eval=0.5).eval()
    features, mask = torch.randn(2, 9, 12), torch.ones(2, 9, dtype=torch.bool)
    mask[0, [2, 5, 8]] = False
    with torch.no_grad():
        before = model.embed_views(features, mask)
        features[0, [2, 5, 8]] = 1e3
        assert torch.equal(model.embed_views(features, mask), before)
        left = features[:1, [0, 1, 3, 4, 6, 7]]
        chosen = chosen_by_loop(model.groups.tokens.detach().numpy(), left.numpy(), np.ones((1, 6), bool), 0.5)
        for view in range(3):
            torch.testing.assert_close(before[0, view], model.image_head(left[:, chosen[0][view]])[0])
    with pytest.raises(ValueError, match="zero tokens"):
        model.embed_views(features, torch.zeros_like(mask))


def test_the_tokens_learn_and_evaluation_keeps_its_own_share():
    model = regions_model(keep=0.8, keep_eval=0.4)
    features = torch.randn(2, 9, 12)
    model.train()
    assert model.groups(features)[0].shape == (2, 3, 7)
    model.embed_views(features).square().sum().backward()
    assert model.groups.tokens.grad.abs().sum() > 0
    model.eval()
    assert model.groups(features)[0].shape == (2, 3, 3)
    assert regions_model(views=1).groups is None
    assert regions_model(views=1).embed_views(features).shape == (2, 1, 8)


@pytest.mark.parametrize("stage", ["vit", "swin"])
def test_groups_work_on_any_grid_and_keep_the_prefix(stage, tiny_vit_folder, tiny_swin_folder):
    folder, prefix = (tiny_vit_folder, 1) if stage == "vit" else (tiny_swin_folder, 0)
    values = {
        "image_encoder": {"source": str(folder), "frozen": False},
        "text_encoder": {"source": "bigru", "vectors": None, "hidden": 8},
        "embed_dim": 8, "block_width": 8, "sampling": "groups", "num_views": 2, "keep": 0.5,
    }  # fmt: skip
    model = AVSE(parse(ModelConfig, values), captions=["a dog"]).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        tokens = model.image_encoder(pixels)
        whole = np.ones((2, 16), bool)
        chosen = chosen_by_loop(model.groups.tokens.numpy(), tokens[:, prefix:].numpy(), whole, 0.5)
        views = model.embed_views(pixels)
        for view in range(2):
            rows = [*range(prefix), *(i + prefix for i in chosen[1][view])]
            torch.testing.assert_close(views[1, view], model.image_head(tokens[1:, rows])[0], rtol=1e-4, atol=1e-5)
    model.train()
    model.embed_views(pixels).sum().backward()
    assert model.groups.tokens.grad is not None


def test_views_that_cannot_be_chosen_are_refused():
    for method in ("gumbel", "nearest", "uniform"):
        with pytest.raises(ConfigError, match=f"no grid to draw 3 views on by sampling '{method}'.*sampling=groups"):
            regions_model(method)
        assert regions_model(method, views=1).embed_views(torch.randn(2, 9, 12)).shape == (2, 1, 8)
    with pytest.raises(ConfigError, match="not there before an encoder's blocks.*sampling_stage=output"):
        load_recipe(None, ["model.sampling=groups", "model.image_encoder.sampling_stage=input"])
