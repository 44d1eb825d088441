"""Pairs as they are: equal to transformers' own models and processors, with views, saved and loaded, and refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from avse.checkpoint import CheckpointError
from avse.config import ConfigError, ImageEncoderConfig, ModelConfig, TextEncoderConfig, load_recipe
from avse.encoders import EncoderError, build_image_encoder, build_text_encoder
from avse.encoders.dual import pair_type
from avse.encoders.dual_pixels import pair_pixels
from avse.features import FeatureCache, text_tokens
from avse.model import AVSE
from avse.start import build_model, open_model

FAMILIES = ["clip", "siglip", "siglip2"]
TEXTS = ["a red dog on a beach", "two cats.", "", "left of the large tree, 7 birds", "naïve 犬"]
CELLS = torch.tensor([[[0, 1, 5], [10, 11, 15]], [[2, 3, 7], [4, 8, 9]]])


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def theirs(pair_folders):
    from transformers import AutoModel

    return {name: AutoModel.from_pretrained(folder).eval() for name, folder in pair_folders.items()}


@pytest.fixture(scope="module")
def processors(pair_folders):
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessorPil,
        CLIPProcessor,
        Siglip2ImageProcessorPil,
        Siglip2Processor,
        SiglipImageProcessorPil,
        SiglipProcessor,
    )

    kinds = {
        "clip": (CLIPProcessor, CLIPImageProcessorPil),
        "siglip": (SiglipProcessor, SiglipImageProcessorPil),
        "siglip2": (Siglip2Processor, Siglip2ImageProcessorPil),
    }
    made = {}
    for name, (both, images) in kinds.items():
        folder = pair_folders[name]
        made[name] = both(images.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    return made


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Smooth pictures of several shapes as files: wide, tall, smaller than the encoder's, square; two JPEGs."""
    folder, random, paths = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for width, height, name in (
        (90, 47, "a.png"),
        (47, 91, "b.png"),
        (20, 25, "c.png"),
        (64, 64, "d.png"),
        (33, 60, "e.jpg"),
        (640, 470, "f.jpg"),  # large enough to be decoded at a reduced size, which a pair must not
    ):
        coarse = Image.fromarray(random.integers(0, 255, (6, 6, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / name)
        paths.append(folder / name)
    return paths


def own_inputs(processor, name, **inputs):
    rule = {"clip": {"padding": True, "truncation": True}, "siglip": {"padding": "max_length", "truncation": True}}
    patches = {"patch_size": 8, "max_num_patches": 16} if name == "siglip2" and "images" in inputs else {}
    return processor(**inputs, return_tensors="pt", **rule.get(name, {}), **patches)


@torch.inference_mode()
def cosines(model, **inputs):
    """What transformers' logits are before scale and bias."""
    bias = getattr(model, "logit_bias", torch.zeros(()))
    return ((model(**inputs).logits_per_image - bias) / model.logit_scale.exp()).numpy()


def vision_inputs(name, pixels):
    if name != "siglip2":
        return {"pixel_values": pixels}
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    patches = torch.stack([torch.from_numpy(convert_image_to_patches(image.numpy(), 8)) for image in pixels])
    shapes = torch.tensor([[4, 4]] * len(pixels))
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(len(pixels), 16).long(),
        "spatial_shapes": shapes,
    }


def test_tensors_give_their_logits(family, pair_folders, theirs, processors):
    model = AVSE.from_dual_encoder(pair_folders[family])
    assert (model.num_image_blocks, model.num_text_blocks) == (1, 1) and not model.training
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = own_inputs(processors[family], family, text=TEXTS)
    expected = cosines(theirs[family], **tokens, **vision_inputs(family, pixels))
    mask = tokens.get("attention_mask", torch.ones_like(tokens["input_ids"]))
    with torch.inference_mode():
        images, texts = model.embed_pixels(pixels).numpy(), model.embed_tokens(tokens["input_ids"], mask).numpy()
        assert model.embed_views(pixels).shape == (4, 1, model.block_width)
    assert images.shape == (4, 1, model.block_width) and texts.shape == (5, 1, model.block_width)
    assert np.abs(model.similarity(images, texts) - expected).max() < 2e-6
    assert expected.std() > 0.02  # the vectors differ: the comparison says something


def test_pictures_and_sentences_give_their_logits(family, pair_folders, theirs, processors, pictures):
    if family == "siglip2":
        pictures = [path for path in pictures if path.name == "d.png"]  # NaFlex keeps the shape of any other
    model = AVSE.from_dual_encoder(pair_folders[family])
    pixels = np.stack([model.image_encoder.load_pixels(path) for path in pictures])
    opened = [Image.open(path).convert("RGB") for path in pictures]
    inputs = own_inputs(processors[family], family, text=TEXTS, images=opened)
    theirs_pixels = vision_inputs(family, torch.from_numpy(pixels))["pixel_values"]
    assert float((inputs["pixel_values"] - theirs_pixels).abs().max()) < 1e-6
    scores = model.similarity(model.encode_images(pictures), model.encode_texts(TEXTS))
    assert np.abs(scores - cosines(theirs[family], **inputs)).max() < 2e-6


def test_naflex_is_squashed_to_a_square(pair_folders, processors, pictures):
    model = AVSE.from_dual_encoder(pair_folders["siglip2"])
    assert model.image_encoder.grid == (4, 4)
    wide = own_inputs(processors["siglip2"], "siglip2", images=Image.open(pictures[0]), text="")
    assert wide["spatial_shapes"].tolist() == [[3, 5]]
    # the same pixels as of the picture that somebody squashed beforehand
    squashed = Image.open(pictures[0]).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(model.encode_images(pictures[0]), model.encode_images(squashed))
    larger = AVSE.from_dual_encoder(pair_folders["siglip2"], resolution=48)
    assert larger.image_encoder.grid == (6, 6) and larger.encode_images(pictures[:2]).shape == (2, 1, 32)


@pytest.mark.parametrize("edges", [(32, 32), (40, 32), (24, 32)])
def test_clip_pixels_are_cut_as_its_processor_does(edges, pair_folders, pictures, tmp_path):
    from transformers import AutoConfig, CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": edges[0]}, crop_size=edges[1])
    processor.save_pretrained(tmp_path)
    spec = pair_pixels(tmp_path, AutoConfig.from_pretrained(pair_folders["clip"]))
    from avse.images import read_image, to_pixels

    for path in pictures:
        expected = processor(Image.open(path).convert("RGB"), return_tensors="np")["pixel_values"][0]
        assert np.abs(to_pixels(read_image(path), spec) - expected).max() < 1e-6, path


def test_an_end_inside_a_text_and_the_old_end_number(pair_folders, theirs, processors, tmp_path):
    """CLIP pools its first end token; configurations that say 2 mean the largest number."""
    from transformers import AutoModel

    texts = ["a dog <|endoftext|> a cat", "a cat"]
    folder = tmp_path / "old"
    shutil.copytree(pair_folders["clip"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for where, oracle in ((pair_folders["clip"], theirs["clip"]), (folder, AutoModel.from_pretrained(folder).eval())):
        model = AVSE.from_dual_encoder(where)
        tokens = model.text_encoder.tokenize(texts)
        assert tokens.attention_mask.sum(1).tolist() == [6, 6]
        with torch.inference_mode():
            images = model.embed_pixels(pixels).numpy()
        scores = model.similarity(images, model.encode_texts(texts))
        inputs = own_inputs(processors["clip"], "clip", text=texts)
        assert np.abs(scores - cosines(oracle, **inputs, pixel_values=pixels)).max() < 2e-6
    config["text_config"]["eos_token_id"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match=r"looks for the token 7 at a text's end, its tokenizer writes 513"):
        AVSE.from_dual_encoder(folder)


def test_long_sentences_are_cut_alike_and_warn(family, pair_folders, theirs, processors):
    text = "a dog on a beach and " * 8
    model = AVSE.from_dual_encoder(pair_folders[family])
    limit = 77 if family == "clip" else 64
    with pytest.warns(UserWarning, match=f"cut at {limit} tokens"):
        ours = model.encode_texts(text)
    inputs = own_inputs(processors[family], family, text=[text])
    with torch.inference_mode():
        expected = theirs[family].get_text_features(**inputs).pooler_output[0].numpy()
    assert np.abs(ours[0] - expected / np.linalg.norm(expected)).max() < 2e-6


@torch.inference_mode()
def views_by_hand(name, model, pixels, stage):
    """Pool views of `CELLS` with transformers' own parts: (B, V, D)."""
    tower, out = model.vision_model, torch.empty(2, 2, 24 if name == "clip" else 32)
    for row in range(2):
        inputs = vision_inputs(name, pixels[row : row + 1])
        embed = [inputs["pixel_values"]] + ([inputs["spatial_shapes"]] if name == "siglip2" else [])
        tokens = tower.embeddings(*embed)
        for view in range(2):
            cells = CELLS[row, view]
            if name == "clip":
                kept = torch.cat([torch.zeros(1).long(), cells + 1])
                hidden = tower.pre_layrnorm(tokens)[:, kept]
                for layer in tower.encoder.layers:
                    hidden = layer(hidden, None)
                out[row, view] = model.visual_projection(tower.post_layernorm(hidden[:, 0]))
                continue
            hidden = tokens[:, cells] if stage == "input" else tokens
            for layer in tower.encoder.layers:
                hidden = layer(hidden, None)
            hidden = tower.post_layernorm(hidden)
            out[row, view] = tower.head(hidden if stage == "input" else hidden[:, cells])
    return out


@pytest.mark.parametrize(
    ("name", "stage"), [("clip", "input"), *((n, s) for n in FAMILIES[1:] for s in ("input", "output"))]
)
def test_views(name, stage, pair_folders, theirs):
    model = AVSE.from_dual_encoder(pair_folders[name], 2, sampling_stage=stage)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        views = model.embed_views(pixels, patch_indices=CELLS)
        blocks = model.embed_pixels(pixels, CELLS)
    expected = views_by_hand(name, theirs[name], pixels, stage)
    assert torch.allclose(views, expected, atol=1e-5) and not torch.allclose(views[:, 0], views[:, 1], atol=1e-2)
    texts = model.encode_texts(TEXTS)
    unit = torch.nn.functional.normalize(expected, dim=-1).numpy()
    best = np.einsum("nvd,md->nmv", unit, texts[:, 0]).max(axis=2)
    assert blocks.shape == (2, 2, model.config.embed_dim) and model.num_text_blocks == 1
    assert np.abs(model.similarity(blocks.numpy(), texts) - best).max() < 1e-5


def test_the_stage_of_views_is_the_familys(pair_folders):
    stages = {
        name: AVSE.from_dual_encoder(pair_folders[name], 2).config.image_encoder.sampling_stage for name in FAMILIES
    }
    assert stages == {"clip": "input", "siglip": "output", "siglip2": "output"}
    with pytest.raises(EncoderError, match="CLS token alone.*set sampling_stage to 'input'"):
        AVSE.from_dual_encoder(pair_folders["clip"], 2, sampling_stage="output")


def test_blocks(family, pair_folders, pictures):
    model = AVSE.from_dual_encoder(pair_folders[family], 3, block_width=8, keep=0.5)
    dim = model.config.embed_dim
    assert (model.num_image_blocks, model.num_text_blocks, model.block_width) == (3 * dim // 8, dim // 8, 8)
    assert model.encode_images(pictures[:2]).shape == (2, 3 * dim // 8, 8)
    with pytest.raises(ConfigError, match="block_width 7 does not divide"):
        AVSE.from_dual_encoder(pair_folders[family], block_width=7)


def test_a_recipe_may_ask_for_blocks_of_the_pairs_width(pair_folders):
    """Whether C divides D is asked once the pair has told D, not of the default D = 512."""
    recipe = load_recipe("clip", [f"init_from={pair_folders['clip']}", "model.block_width=12"])
    assert build_model(recipe).num_text_blocks == 2  # D = 24
    with pytest.raises(ConfigError, match="block_width 256 does not divide embed_dim 24; the nearest .* 24, 12, 8"):
        build_model(load_recipe("clip", [f"init_from={pair_folders['clip']}"]))


def test_a_pair_of_a_width_that_cannot_be_is_named(pair_folders, tmp_path):
    shutil.copytree(pair_folders["clip"], tmp_path / "pair")
    said = json.loads((tmp_path / "pair" / "config.json").read_text())
    (tmp_path / "pair" / "config.json").write_text(json.dumps({**said, "projection_dim": 1}))
    with pytest.raises(ConfigError, match="pair: embed_dim: .*greater than or equal to 8"):
        AVSE.from_dual_encoder(tmp_path / "pair")
    (tmp_path / "pair" / "config.json").write_text(json.dumps(said))
    path = tmp_path / "pair" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 1}))
    with pytest.raises(ConfigError, match="pair: text_encoder.max_length: .*greater than or equal to 4"):
        AVSE.from_dual_encoder(tmp_path / "pair")


def test_saved_and_loaded_without_the_pair(family, pair_folders, pictures, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(pair_folders[family], source)
    model = AVSE.from_dual_encoder(source, 2)
    images, texts = model.encode_images(pictures), model.encode_texts(TEXTS)
    again = AVSE(model.config).eval()
    assert again.fingerprint == model.fingerprint and np.array_equal(again.encode_images(pictures), images)
    model.save_pretrained(tmp_path / "saved", extra={"seed": 3})
    shutil.rmtree(source)
    loaded = AVSE.from_pretrained(tmp_path / "saved")
    assert np.array_equal(loaded.encode_images(pictures), images) and np.array_equal(loaded.encode_texts(TEXTS), texts)
    assert loaded.fingerprint == model.fingerprint and loaded.config == model.config
    assert loaded.facts["seed"] == 3 and loaded.facts["logit_scale"] == pytest.approx(np.exp(1.5), abs=1e-4)
    assert ("logit_bias" in loaded.facts) == (family != "clip")
    loaded._fingerprint = None
    assert loaded.fingerprint == model.fingerprint


def test_the_fingerprint_knows_content_not_place(pair_folders, tmp_path):
    here = AVSE.from_dual_encoder(pair_folders["clip"])
    shutil.copytree(pair_folders["clip"], tmp_path / "there")
    assert AVSE.from_dual_encoder(tmp_path / "there").fingerprint == here.fingerprint
    path = tmp_path / "there" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "resample": 2}))
    assert AVSE.from_dual_encoder(tmp_path / "there").fingerprint != here.fingerprint


def test_opened_as_a_model(family, pair_folders, caplog):
    caplog.set_level("INFO")
    model = open_model(pair_folders[family])
    assert model.folder == pair_folders[family] and model.config.num_views == 1
    assert f"is a pair of transformers ({family}), taken as it is: one view of 32 px" in caplog.text
    assert AVSE.from_dual_encoder(pair_folders[family], 2).folder is None  # opened again it would be another model
    with pytest.raises(CheckpointError, match="is a pair of transformers: AVSE.from_dual_encoder"):
        AVSE.from_pretrained(pair_folders[family])


def test_cached_features_give_the_same_embeddings(family, pair_folders, pictures, tmp_path):
    model = AVSE.from_dual_encoder(pair_folders[family])
    ids = [path.name for path in pictures]
    grids = FeatureCache(tmp_path).grids(model.image_encoder, pictures, ids, precision="fp32", progress=False)
    with torch.inference_mode():
        images = model.embed_features(grids.batch(range(len(pictures)))).numpy()
        stored = text_tokens(model.text_encoder, TEXTS, dtype=torch.float32, progress=False)
        tokens, mask = stored.batch(range(len(TEXTS)))
        texts = model.embed_token_features(tokens, mask).numpy()
    assert np.abs(images - model.encode_images(pictures)).max() < 2e-3  # grids are kept in float16
    assert stored.values.shape == (len(TEXTS), 32)  # one token a text, not 64
    assert np.abs(texts - model.encode_texts(TEXTS)).max() < 2e-6
    with pytest.raises(ValueError, match="need the encoder's grid"):
        model.embed_features(torch.zeros(1, 9, 32))
    with pytest.raises(ValueError, match="sees every token"):
        full = torch.zeros(1, model.image_encoder.num_prefix + 16, 32)
        model.embed_features(full, mask=torch.zeros(full.shape[:2]).bool())


def test_no_words_are_augmented(pair_folders):
    encoder = AVSE.from_dual_encoder(pair_folders["siglip2"]).text_encoder
    assert not encoder.can_augment
    with pytest.raises(EncoderError, match="set word_augment to false"):
        encoder.augment(torch.zeros(1, 2).long(), torch.ones(1, 2).long(), torch.Generator())


@pytest.mark.parametrize(
    ("values", "size", "shorter"),
    [
        ({"size": 30, "crop_size": 32, "do_center_crop": True}, (32, 32), 30),
        ({"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 24}}, (32, 24), 40),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, (32, 32), None),
        ({"size": {"height": 32, "width": 32}, "crop_size": 32}, (32, 32), None),
        ({"resample": 2}, (32, 32), 32),
    ],
)
def test_processors_as_they_are_written(values, size, shorter, pair_folders, tmp_path):
    from transformers import AutoConfig

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    spec = pair_pixels(tmp_path, AutoConfig.from_pretrained(pair_folders["clip"]))
    assert (spec.size, spec.shorter_side) == (size, shorter)
    assert spec.resample == ("bilinear" if "resample" in values else "bicubic") and spec.mean[0] == 0.48145466


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_resize": False}, "do_resize is false: not understood"),
        ({"resample": 1}, r"resample 1 is neither 2 \(bilinear\) nor 3 \(bicubic\)"),
        ({"size": {"shortest_edge": 32}, "do_center_crop": False}, "no fixed height and width"),
        ({"size": {"height": 40, "width": 32}, "crop_size": 32}, "are not understood"),
        ({"rescale_factor": 1.0}, "only 1/255 is understood"),
    ],
)
def test_processors_that_are_not_understood(values, message, pair_folders, tmp_path):
    from transformers import AutoConfig

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(EncoderError, match=message):
        pair_pixels(tmp_path, AutoConfig.from_pretrained(pair_folders["clip"]))


def test_what_is_no_whole_pair_is_refused(pair_folders, tiny_vit_folder, tmp_path):
    assert pair_type(tiny_vit_folder) == "" and pair_type(tmp_path) == "" and pair_type("nowhere") == ""
    with pytest.raises(EncoderError, match="model_type 'vit' is no pair of encoders; known are CLIP, SigLIP"):
        AVSE.from_dual_encoder(tiny_vit_folder)
    with pytest.raises(EncoderError, match="is no folder"):
        AVSE.from_dual_encoder(tmp_path / "gone")
    folder = tmp_path / "clip"
    shutil.copytree(pair_folders["clip"], folder)
    (folder / "preprocessor_config.json").rename(tmp_path / "kept.json")
    with pytest.raises(EncoderError, match="no preprocessor_config.json"):
        AVSE.from_dual_encoder(folder)
    (tmp_path / "kept.json").rename(folder / "preprocessor_config.json")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(EncoderError, match="no tokenizer"):
        AVSE.from_dual_encoder(folder)
    shutil.copy(pair_folders["clip"] / "tokenizer.json", folder)
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="1 weights are missing and would stay random: visual_projection.weight"):
        AVSE.from_dual_encoder(folder)
    folder = tmp_path / "siglip"
    shutil.copytree(pair_folders["siglip"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["vision_use_head"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EncoderError, match="has no pooling head"):
        AVSE.from_dual_encoder(folder)


def test_settings_that_are_the_pairs_own(pair_folders, tiny_bert_folder):
    def config(text=None, **changes):
        source = str(pair_folders["clip"])
        image = ImageEncoderConfig(source=source, **changes.pop("image", {}))
        return ModelConfig(
            image_encoder=image, text_encoder=TextEncoderConfig(source=text or source), heads="own", **changes
        )

    with pytest.raises(ConfigError, match=r"model.embed_dim is 256 there 24; model.pooling is 'mean' there 'gpo'"):
        AVSE(config(embed_dim=256, pooling="mean", num_views=1))
    with pytest.raises(ConfigError, match="block_width 256 does not divide embed_dim 24"):
        AVSE(config(num_views=1))
    with pytest.raises(EncoderError, match="give the pair's folder as init_from"):
        AVSE(config(text=str(tiny_bert_folder), block_width=8))
    with pytest.raises(EncoderError, match="sampling 'groups' is for regions"):
        AVSE(config(block_width=8, sampling="groups"))
    grid = build_image_encoder(ImageEncoderConfig(source=str(pair_folders["clip"])))
    text = build_text_encoder(TextEncoderConfig(source=str(tiny_bert_folder)))
    with pytest.raises(EncoderError, match="heads 'own' are those of a pair"):
        AVSE(config(block_width=8, num_views=1), image_encoder=grid, text_encoder=text)


def test_a_vision_tower_alone_is_still_a_grid(pair_folders):
    """SigLIP 2's NaFlex tower is a grid encoder as the others are, with our heads."""
    encoder = build_image_encoder(ImageEncoderConfig(source=str(pair_folders["siglip2"])))
    assert encoder.grid == (4, 4) and encoder.num_prefix == 0 and encoder.pixels.resample == "bicubic"
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = encoder.forward_views(pixels, torch.arange(16).expand(2, 1, 16))[:, 0]
        assert torch.allclose(whole, encoder(pixels), atol=1e-5)


def test_siglips_own_tokenizer(pair_folders, tmp_path):
    """The first SigLIP writes its words by sentencepiece and drops punctuation: another tokenizer class."""
    sentencepiece = pytest.importorskip("sentencepiece")
    from transformers import AutoModel, SiglipTokenizer

    lines = ["a red dog on a beach", "two cats sit on the mat", "left of the large tree 7 birds", "a boat near a river"]
    (tmp_path / "lines.txt").write_text("\n".join(lines * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "lines.txt"),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=36,
        hard_vocab_limit=False,
        **{"pad_id": -1, "bos_id": -1, "eos_id": 1, "unk_id": 0, "minloglevel": 2},
    )
    tokenizer = SiglipTokenizer(vocab_file=str(tmp_path / "spiece.model"), model_input_names=["input_ids"])
    folder = tmp_path / "siglip"
    shutil.copytree(pair_folders["siglip"], folder)
    (folder / "tokenizer.json").unlink()
    tokenizer.save_pretrained(folder)
    texts = ["A red dog, on a beach!", "two cats.", ""]
    inputs = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(folder).eval().get_text_features(**inputs).pooler_output
    model = AVSE.from_dual_encoder(folder)
    ours = model.encode_texts(texts)
    assert np.abs(ours[:, 0] - torch.nn.functional.normalize(expected, dim=-1).numpy()).max() < 2e-6
    model.save_pretrained(tmp_path / "saved")
    assert np.array_equal(AVSE.from_pretrained(tmp_path / "saved").encode_texts(texts), ours)
