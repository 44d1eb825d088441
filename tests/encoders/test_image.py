from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from avse.config import ImageEncoderConfig
from avse.encoders import EncoderError, ImageEncoder, build_image_encoder

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PICTURE = {"image_size": 32, "patch_size": 8}


def make_model(family: str):
    import transformers as hf

    torch.manual_seed(1)
    if family == "vit":
        return hf.ViTModel(hf.ViTConfig(**SMALL, **PICTURE))
    if family == "dinov2":
        return hf.Dinov2Model(hf.Dinov2Config(**SMALL | {"mlp_ratio": 2}, **PICTURE))
    if family == "dinov2_with_registers":
        config = hf.Dinov2WithRegistersConfig(**SMALL | {"mlp_ratio": 2}, **PICTURE, num_register_tokens=3)
        model = hf.Dinov2WithRegistersModel(config)
        torch.nn.init.normal_(model.embeddings.register_tokens)
        return model
    if family == "siglip_vision_model":
        return hf.SiglipVisionModel(hf.SiglipVisionConfig(**SMALL, **PICTURE))
    if family == "clip_vision_model":
        return hf.CLIPVisionModel(hf.CLIPVisionConfig(**SMALL, **PICTURE))
    text = SMALL | {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 8}
    if family == "siglip":
        return hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=SMALL | PICTURE))
    if family == "clip":
        return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=SMALL | PICTURE, projection_dim=16))
    swin = hf.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2, mlp_ratio=2.0
    )
    return hf.SwinModel(swin)


STACKS = ["vit", "dinov2", "dinov2_with_registers", "siglip_vision_model", "clip_vision_model"]
PREFIX = dict(zip(STACKS, [1, 1, 4, 0, 1]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vision")
    for family in [*STACKS, "siglip", "clip", "swin"]:
        make_model(family).eval().save_pretrained(root / family)
    return root


def build(folder, **settings) -> ImageEncoder:
    return build_image_encoder(ImageEncoderConfig(source=str(folder), **settings))


def pixels(encoder: ImageEncoder, batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, *encoder.pixels.size, generator=torch.Generator().manual_seed(5))


def own_output(family: str, folder, values: torch.Tensor) -> torch.Tensor:
    """Transformers' own forward pass on the loaded folder."""
    model = AutoModel.from_pretrained(folder).eval()
    extra = {} if family.startswith("dinov2") else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        tokens = model(pixel_values=values, **extra).last_hidden_state
        return model.post_layernorm(tokens) if family == "clip_vision_model" else tokens  # transformers: CLS alone


@pytest.mark.parametrize("family", [*STACKS, "swin"])
@pytest.mark.parametrize("resolution", [None, 48, 56])
def test_forward_is_the_own_forward_of_transformers(folders, family, resolution):
    encoder = build(folders / family, resolution=resolution)
    side = (resolution or 32) // 8
    assert encoder.pixels.size == (resolution or 32,) * 2 and encoder.grid == (side, side)
    assert (encoder.width, encoder.num_prefix) == (32, PREFIX.get(family, 0))
    with torch.no_grad():
        tokens = encoder(pixels(encoder))
    assert tokens.shape == (3, encoder.num_prefix + side * side, 32)
    torch.testing.assert_close(tokens, own_output(family, folders / family, pixels(encoder)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", STACKS)
def test_views_of_all_cells_equal_the_whole_pass(folders, family):
    encoder = build(folders / family, sampling_stage="input")
    values = pixels(encoder)
    cells = torch.arange(16).expand(3, 2, 16)
    with torch.no_grad():
        whole, views = encoder(values), encoder.forward_views(values, cells)
        order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
        shuffled = encoder.forward_views(values, cells[..., order])
    assert views.shape == (3, 2, encoder.num_prefix + 16, 32)
    for view in (0, 1):
        torch.testing.assert_close(views[:, view], whole, rtol=1e-5, atol=1e-5)
    prefix = encoder.num_prefix
    torch.testing.assert_close(shuffled[:, :, prefix:], views[:, :, prefix:][:, :, order], rtol=1e-4, atol=1e-5)


def test_views_of_kept_cells_equal_the_layers_on_hand_gathered_embeddings(folders):
    encoder = build(folders / "dinov2_with_registers", sampling_stage="input")
    values = pixels(encoder, 2)
    cells = torch.tensor([[[3, 0, 9], [15, 14, 1]], [[2, 5, 7], [8, 6, 4]]])
    model = encoder.model
    with torch.no_grad():
        views = encoder.forward_views(values, cells)
        embedded = model.embeddings(values)
        for image in range(2):
            for view in range(2):
                rows = [0, 1, 2, 3, *(4 + int(cell) for cell in cells[image, view])]
                tokens = torch.stack([embedded[image, row] for row in rows])[None]
                for layer in model.encoder.layer:
                    tokens = layer(tokens)
                expected = model.layernorm(tokens)[0]
                torch.testing.assert_close(views[image, view], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [*STACKS, "swin"])
def test_a_picture_does_not_depend_on_its_batch(folders, family):
    encoder = build(folders / family)
    values = pixels(encoder)
    with torch.no_grad():
        whole = encoder(values)
        for row in range(3):
            torch.testing.assert_close(encoder(values[row : row + 1])[0], whole[row], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [*STACKS, "swin"])
def test_without_final_norm_the_norm_gives_the_other(folders, family):
    normed, plain = build(folders / family), build(folders / family, final_norm=False)
    norm = getattr(plain.model, "layernorm", None) or plain.model.post_layernorm
    with torch.no_grad():
        torch.testing.assert_close(norm(plain(pixels(plain))), normed(pixels(plain)), rtol=1e-5, atol=1e-5)
    assert plain.fingerprint() != normed.fingerprint()


@pytest.mark.parametrize(("dual", "tower"), [("siglip", "siglip_vision_model"), ("clip", "clip_vision_model")])
def test_a_dual_encoder_folder_gives_its_vision_tower(folders, dual, tower):
    encoder = build(folders / dual)
    with torch.no_grad():
        whole = AutoModel.from_pretrained(folders / dual).eval().vision_model
        expected = whole(pixel_values=pixels(encoder)).last_hidden_state
        if dual == "clip":
            expected = whole.post_layernorm(expected)
        torch.testing.assert_close(encoder(pixels(encoder)), expected, rtol=1e-5, atol=1e-5)
    assert encoder.model.config.model_type == tower


@pytest.mark.parametrize("family", [*STACKS, "siglip", "clip", "swin"])
def test_saved_encoder_is_rebuilt_exactly(folders, family, tmp_path):
    encoder = build(folders / family, resolution=48, pixels="official")
    encoder.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "encoder.json"]
    rebuilt = ImageEncoder.from_saved(tmp_path)
    assert rebuilt.fingerprint() != encoder.fingerprint()  # random weights
    rebuilt.load_state_dict(encoder.state_dict(), strict=True)
    assert rebuilt.fingerprint() == encoder.fingerprint()
    assert (rebuilt.pixels, rebuilt.settings, rebuilt.grid) == (encoder.pixels, encoder.settings, encoder.grid)
    with torch.no_grad():
        assert torch.equal(rebuilt(pixels(encoder)), encoder(pixels(encoder)))


def test_frozen_encoder_stays_in_evaluation_mode_and_untrained(folders):
    frozen, free = build(folders / "vit"), build(folders / "vit", frozen=False, sampling_stage="input")
    assert not frozen.train().model.training and not any(p.requires_grad for p in frozen.parameters())
    assert free.train().model.training
    tokens = free.forward_views(pixels(free), torch.arange(8).expand(3, 2, 8))
    tokens.pow(2).sum().backward()
    assert all(p.grad is not None for p in free.parameters() if p.requires_grad)


def test_unused_parameters_are_not_trained(folders):
    encoder = build(folders / "dinov2", frozen=False, final_norm=False)
    still = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert still == {"model.embeddings.mask_token", "model.layernorm.weight", "model.layernorm.bias"}


def test_swin_refuses_the_input_stage_and_says_why(folders):
    with pytest.raises(EncoderError, match="sampling_stage 'input'.*windows.*use 'output'"):
        build(folders / "swin", sampling_stage="input")
    encoder = build(folders / "swin")
    assert encoder.stages == {"output"}
    with pytest.raises(EncoderError, match="windows"):
        encoder.forward_views(pixels(encoder), torch.zeros(3, 2, 4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (torch.full((3, 2, 4), 16), "16.*cells 0 to 15"),
        (torch.full((3, 2, 4), -1), "-1.*cells 0 to 15"),
        (torch.zeros(3, 4, dtype=torch.int64), r"\(B, V, K\)"),
        (torch.zeros(2, 2, 4, dtype=torch.int64), "B = 3"),
        (torch.zeros(3, 2, 0, dtype=torch.int64), r"\(B, V, K\)"),
    ],
)
def test_cells_outside_the_grid_are_refused(folders, cells, message):
    encoder = build(folders / "vit", sampling_stage="input")
    with pytest.raises(EncoderError, match=message):
        encoder.forward_views(pixels(encoder), cells)


def test_pixels_of_another_size_are_refused(folders):
    with pytest.raises(EncoderError, match=r"\(1, 3, 40, 40\).*\(B, 3, 32, 32\)"):
        build(folders / "vit")(torch.zeros(1, 3, 40, 40))


def test_resolutions_that_do_not_fit_are_refused(folders, tmp_path):
    with pytest.raises(EncoderError, match="resolution 45.*patch size 8: use 40"):
        build(folders / "vit", resolution=45)
    folder = tmp_path / "swin"
    shutil.copytree(folders / "swin", folder)
    config = json.loads((folder / "config.json").read_text()) | {"window_size": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="2x2, below its window of 4; use 32"):
        build(folder, resolution=16)


def test_pixel_recipe_comes_from_the_preprocessor_file(folders, tmp_path):
    folder = tmp_path / "vit"
    shutil.copytree(folders / "vit", folder)

    def recipe(values, **settings):
        (folder / "preprocessor_config.json").write_text(json.dumps(values))
        return build(folder, **settings).pixels

    half = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    spec = recipe({"size": {"height": 40, "width": 40}, **half})
    assert (spec.size, spec.mean, spec.std, spec.method) == ((40, 40), (0.5,) * 3, (0.5,) * 3, "pillow")
    spec = recipe({"size": {"shortest_edge": 64}, "crop_size": {"height": 48, "width": 48}, "do_center_crop": True})
    assert (spec.size, spec.mean) == ((48, 48), (0.485, 0.456, 0.406))
    assert recipe({"size": 24, "do_center_crop": False, "crop_size": 16}).size == (24, 24)
    assert recipe({"do_normalize": False}).std == (1.0, 1.0, 1.0)
    spec = recipe({"size": 24, **half}, pixels="official", resolution=56)
    assert (spec.size, spec.mean, spec.method) == ((56, 56), (0.485, 0.456, 0.406), "official")
    with pytest.raises(EncoderError, match="rescale_factor 0.5"):
        recipe({"rescale_factor": 0.5})


def test_load_pixels_reads_what_the_encoder_wants(folders, tmp_path):
    Image.new("RGB", (50, 20), (255, 0, 0)).save(tmp_path / "red.png")
    encoder = build(folders / "vit")
    values = encoder.load_pixels(tmp_path / "red.png")
    assert values.shape == (3, 32, 32) and values.dtype == np.float32
    np.testing.assert_allclose(values[:, 5, 7], [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225], rtol=1e-5)


def rewritten(folder, target, change):
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    save_file(change(weights), target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_missing_weights_are_named_and_never_random(folders, tmp_path):
    part = "vision_model.encoder.layers.0.mlp.fc2.bias"
    # ViT's file holds the names of transformers 4, the error says those of the model
    for family, gone, told in (
        ("vit", "encoder.layer.1.intermediate.dense.weight", "layers.1.mlp.fc1.weight"),
        ("siglip", part, "encoder.layers.0.mlp.fc2.bias"),
    ):
        folder = rewritten(folders / family, tmp_path / family, lambda w, gone=gone: {k: w[k] for k in w if k != gone})
        with pytest.raises(EncoderError, match=f"1 weights are missing.*: {told}; take a complete"):
            build(folder)


def test_a_missing_pooler_does_not_matter(folders, tmp_path):
    for family, part in (("vit", "pooler."), ("siglip_vision_model", "head.")):
        assert any(name.startswith(part) for name in load_file(folders / family / "model.safetensors"))
        folder = rewritten(
            folders / family, tmp_path / family, lambda w, part=part: {k: w[k] for k in w if not k.startswith(part)}
        )
        assert build(folder).fingerprint() == build(folders / family).fingerprint()


def test_weights_of_another_shape_are_refused(folders, tmp_path):
    name = "layernorm.weight"
    folder = rewritten(folders / "vit", tmp_path / "vit", lambda w: {**w, name: torch.ones(31)})
    with pytest.raises(EncoderError, match="cannot be loaded"):
        build(folder)


def test_checkpoints_load_under_old_and_new_names(folders, tmp_path):
    new = {name.removeprefix("model."): value for name, value in build(folders / "vit").state_dict().items()}
    old = load_file(folders / "vit" / "model.safetensors")
    assert "layers.0.attention.q_proj.weight" in new and "encoder.layer.0.attention.attention.query.weight" in old
    folder = rewritten(folders / "vit", tmp_path / "vit", lambda _: new)
    assert build(folder).fingerprint() == build(folders / "vit").fingerprint()


def test_pickled_weights_are_not_loaded_and_the_way_out_is_told(folders, tmp_path):
    folder = tmp_path / "vit"
    shutil.copytree(folders / "vit", folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"no \*.safetensors.*pytorch_model.bin.*save_pretrained"):
        build(folder)


def test_damaged_folders_are_clear_errors(folders, tmp_path):
    with pytest.raises(EncoderError, match="is no folder"):
        build(tmp_path / "nothing")
    with pytest.raises(EncoderError, match="no config.json"):
        build(tmp_path)
    folder = tmp_path / "cut"
    shutil.copytree(folders / "vit", folder)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(EncoderError, match="cannot be loaded"):
        build(folder)


def test_a_text_model_is_no_image_encoder(tiny_bert_folder):
    with pytest.raises(EncoderError, match="'bert' is no known grid encoder.*vit"):
        build(tiny_bert_folder)


def test_from_saved_refuses_other_folders(tmp_path):
    with pytest.raises(EncoderError, match="no such file"):
        ImageEncoder.from_saved(tmp_path)
    (tmp_path / "encoder.json").write_text('{"kind": "bigru"}')
    with pytest.raises(EncoderError, match="kind 'bigru'"):
        ImageEncoder.from_saved(tmp_path)
