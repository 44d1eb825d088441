"""Where a training starts: a recipe's encoders, a pair, or a saved model; what may differ and what may not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avse.config import ConfigError, load_recipe
from avse.model import AVSE
from avse.start import build_model


def recipe(name, *overrides):
    return load_recipe(name, list(overrides))


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_a_pair_with_the_recipes_views_and_blocks(name, pair_folders):
    asked = recipe(name, f"init_from={pair_folders[name]}", "model.block_width=8", "model.keep=0.5")
    model = build_model(asked)
    config, dim = model.config, model.image_encoder.dim
    assert (config.num_views, config.keep, config.block_width, config.embed_dim) == (2, 0.5, 8, dim)
    assert config.image_encoder.sampling_stage == ("input" if name == "clip" else "output")
    assert not config.image_encoder.frozen and not config.text_encoder.frozen
    assert model.facts["init_from"] == f"tiny-{name}@{model.fingerprint[:12]}"
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    still = {n for n, _ in model.named_parameters()} - trained
    assert still == ({n for n in still if "post_layernorm" in n and n.startswith("image_encoder")})
    assert len(still) == (2 if name == "clip" else 0)  # CLIP's last norm is the head's


def test_a_pairs_recipe_needs_a_pair():
    with pytest.raises(ValueError, match=r"heads 'own' are those of one pair.*--set init_from=FOLDER"):
        build_model(recipe("clip"))


def test_what_the_pair_fixes_is_named(pair_folders):
    with pytest.raises(
        ConfigError, match=r"tiny-clip \(CLIP\) fixes .*pixels is 'official' there 'encoder'; model.embed_dim"
    ):
        settings = ("model.embed_dim=64", "model.image_encoder.pixels=official", "model.block_width=8")
        build_model(recipe("clip", f"init_from={pair_folders['clip']}", *settings))


@pytest.fixture
def saved(tiny_vit_folder, tiny_bert_folder, tmp_path):
    """A saved model of our heads, and the settings that say its encoders and widths."""
    said = (
        f"model.image_encoder.source={tiny_vit_folder}",
        f"model.text_encoder.source={tiny_bert_folder}",
        "model.embed_dim=16",
        "model.block_width=8",
    )
    torch.manual_seed(0)
    model = AVSE(recipe(None, *said).model)
    model.save_pretrained(tmp_path / "model", extra={"seed": 7})
    return model, said, f"init_from={tmp_path / 'model'}"


def test_a_saved_model_with_other_views(saved):
    model, said, init = saved
    changed = ("model.num_views=3", "model.block_width=4", "model.text_encoder.frozen=false", "model.dropout=0.0")
    started = build_model(recipe(None, *said, init, *changed))
    assert (started.config.num_views, started.num_image_blocks, started.config.dropout) == (3, 12, 0.0)
    assert not started.text_encoder.frozen and any(p.requires_grad for p in started.text_encoder.parameters())
    ours, theirs = started.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert started.facts["init_from"].startswith("model@") and started.folder is None
    same = build_model(recipe(None, *said, init))
    assert same.fingerprint == model.fingerprint
    assert np.array_equal(same.eval().encode_texts("a dog"), model.eval().encode_texts("a dog"))


def test_a_saved_model_of_other_encoders_is_refused_by_name(saved):
    _, said, init = saved
    with pytest.raises(ConfigError) as refused:
        build_model(recipe(None, init, "model.text_encoder.max_length=32", "model.embed_dim=32", "model.block_width=8"))
    for part in ("image_encoder.source is 'efficientnet-lite0' there", "text_encoder.max_length is 32 there 64"):
        assert part in str(refused.value)
    assert "model.embed_dim is 32 there 16" in str(refused.value) and "num_views" not in str(refused.value)


def test_a_fine_tuned_pair_goes_on_with_its_recipe(pair_folders, tmp_path):
    AVSE.from_dual_encoder(pair_folders["clip"]).save_pretrained(tmp_path / "model")
    model = build_model(recipe("clip", f"init_from={tmp_path / 'model'}", "model.block_width=8"))
    assert model.config.heads == "own" and (model.num_image_blocks, model.num_text_blocks) == (6, 3)
    assert not model.image_encoder.frozen and model.facts["logit_scale"] == pytest.approx(np.exp(1.5), abs=1e-4)
