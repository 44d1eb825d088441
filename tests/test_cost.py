"""The computed cost: parameters, arithmetic and kept bytes against transformers' own models."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch.utils.flop_counter import FlopCounterMode

from avse.config import load_recipe
from avse.cost import CAPTION_TOKENS, KEPT, TOWERS, _tower, cost


def described(source: str) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """A tower of transformers without memory, and the shape of one input."""
    with torch.device("meta"):
        if source == "google-bert/bert-base-uncased":
            return hf.BertModel(hf.BertConfig(), add_pooling_layer=False), (1, CAPTION_TOKENS)
        side = TOWERS[source].side
        if "swin" in source:
            window = 7 if side == 224 else 12
            config = hf.SwinConfig(
                image_size=side, embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=window
            )
            return hf.SwinModel(config, add_pooling_layer=False), (1, 3, side, side)
        if "dinov2" in source:
            return hf.Dinov2Model(hf.Dinov2Config(image_size=518, patch_size=14)), (1, 3, side, side)
        config = hf.ViTConfig(image_size=side)
        return hf.ViTModel(config, add_pooling_layer=False), (1, 3, side, side)


@pytest.mark.parametrize("source", TOWERS)
def test_a_tower_has_the_parameters_and_the_arithmetic_of_transformers(source):
    model, shape = described(source)
    part = _tower(TOWERS[source], TOWERS[source].side, KEPT["fp32"])
    parameters = sum(p.numel() for p in model.parameters())
    assert part.parameters == pytest.approx(parameters, rel=0.01)
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        model.eval()(torch.zeros(shape, dtype=torch.int64 if len(shape) == 2 else torch.float32))
    assert 2 * part.macs == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_bytes_kept_a_token_are_those_that_autograd_saves(precision):
    def saved(layers: int) -> int:
        config = hf.ViTConfig(
            hidden_size=96, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=384, image_size=32,
            patch_size=4,
        )  # fmt: skip
        model = hf.ViTModel(config).train()
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        half = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), half:
            kept = model(torch.randn(8, 3, 32, 32)).last_hidden_state
        assert kept.requires_grad
        return sum(storages.values())

    found = (saved(3) - saved(1)) / 2 / (8 * 65 * 96)
    assert found == pytest.approx(KEPT[precision], rel=0.15)


def test_a_recipe_by_hand():
    told = cost(load_recipe("flickr30k-butd-bigru"))
    image = 2048 * 1024 + 6 * 2048
    gru = 6 * (50 * 1024 + 1024 * 1024)
    head = 1024 * 1024 + 1024 * 512 + 512 * 1024
    assert told.parameters == told.trained == image + gru + 10_000 * 50 + head
    macs = 128 * (36 * image + 16 * (gru + head)) + 128 * 128 * 12 * 2 * 512
    assert told.step_flops == pytest.approx(6 * macs)
    assert told.steps == 25 * 1133
    assert told.hours(1.0) == pytest.approx(6 * macs * 25 * 1133 / 1e12 / 3600)


def test_what_changes_the_cost():
    def of(*changes: str, name: str = "flickr30k-vit224"):
        return cost(load_recipe(name, list(changes)))

    whole, one = of(), of("model.num_views=1")
    assert 1.5 < whole.step_flops / one.step_flops < 1.7  # two views of 80 % of the cells; the text is small
    frozen = of("model.image_encoder.frozen=true")
    assert frozen.parameters == whole.parameters and frozen.trained < whole.trained - 80e6
    assert frozen.memory < whole.memory / 2 and frozen.step_flops < whole.step_flops / 2
    assert of("train.epoch_of=images").steps * 5 == pytest.approx(whole.steps, rel=0.01)
    assert of(name="coco-vit224").steps > 3.9 * whole.steps
    assert of("model.image_encoder.resolution=384").step_flops > 2.9 * whole.step_flops
    assert of("model.image_encoder.source=somewhere/else") is None
    assert cost(load_recipe("demo")) is None
