"""The model: determinism, shapes, errors, save and load, every encoder family it can be built of."""

import numpy as np
import pytest
import torch
from PIL import Image

from avse.checkpoint import CheckpointError
from avse.config import ImageEncoderConfig, ModelConfig, Recipe, TextEncoderConfig, apply_preset
from avse.files import ManifestError
from avse.images import ImageError
from avse.model import AVSE


def build(vit, bert, **changes):
    image = {"source": str(vit), **changes.pop("image", {})}
    text = {"source": str(bert), **changes.pop("text", {})}
    values = {"embed_dim": 16, "block_width": 8, **changes}
    torch.manual_seed(0)
    return AVSE(
        ModelConfig(image_encoder=ImageEncoderConfig(**image), text_encoder=TextEncoderConfig(**text), **values)
    )


@pytest.fixture(params=["output", "input"])
def model(request, tiny_vit_folder, tiny_bert_folder):
    return build(tiny_vit_folder, tiny_bert_folder, image={"sampling_stage": request.param}).eval()


@pytest.fixture
def pictures():
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (40 + i, 30, 3), dtype=np.uint8)) for i in range(7)]


def test_rows_depend_on_the_one_input_alone(model, pictures):
    together = model.encode_images(pictures)
    assert together.shape == (7, 4, 8) and together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=-1), 1, atol=1e-5)
    for batch_size in (1, 3):
        assert np.abs(model.encode_images(pictures, batch_size=batch_size) - together).max() < 1e-5
    order = [3, 0, 6, 1]
    assert np.abs(model.encode_images([pictures[i] for i in order]) - together[order]).max() < 1e-5
    alone = model.encode_images(pictures[2])
    assert alone.shape == (4, 8) and np.abs(alone - together[2]).max() < 1e-5
    torch.manual_seed(99)
    assert np.array_equal(model.encode_images(pictures), together)


def test_texts_likewise(model):
    texts = ["a red dog", "a cat on a beach near the river with two birds", "tree", ""]
    together = model.encode_texts(texts)
    assert together.shape == (4, 2, 8)
    for i, text in enumerate(texts):
        assert np.abs(model.encode_texts(text) - together[i]).max() < 1e-5


def test_a_cut_sentence_warns(tiny_vit_folder, tiny_bert_folder):
    model = build(tiny_vit_folder, tiny_bert_folder, text={"max_length": 6}).eval()
    with pytest.warns(UserWarning, match="cut at 6 tokens"):
        model.encode_texts(["a dog and a cat and a bird"])


def test_similarity_refuses_other_block_counts(model):
    images, texts = np.zeros((3, 4, 8), np.float32), np.zeros((2, 2, 8), np.float32)
    assert model.similarity(images, texts).shape == (3, 2)
    with pytest.raises(ValueError, match="P = 4 image and Q = 2 text blocks.*exchanged"):
        model.similarity(texts, images)
    with pytest.raises(ValueError, match=r"\(3, 3, 8\)"):
        model.similarity(images[:, :3], texts)


def test_given_cells_decide_and_wrong_ones_are_named(model):
    pixels = torch.randn(2, 3, 32, 32)
    cells = torch.arange(12).expand(2, 2, 12)
    with torch.no_grad():
        one = model.embed_pixels(pixels, cells)
        other = model.embed_pixels(pixels, cells + 4)
    assert one.shape == (2, 4, 8) and not torch.allclose(one, other)
    assert torch.allclose(one[:, :2], one[:, 2:], atol=1e-6)  # two views of the same cells are equal
    with pytest.raises(ValueError, match=r"expected \(2, 2, 'K'\)"):
        model.embed_pixels(pixels, cells[:, :1])
    with pytest.raises(ValueError, match="cells 0..15"):
        model.embed_pixels(pixels, cells + 10)


def test_features_equal_pixels_at_the_output_stage(tiny_vit_folder, tiny_bert_folder):
    model = build(tiny_vit_folder, tiny_bert_folder).eval()
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        grid = model.image_encoder(pixels)
        assert torch.allclose(model.embed_features(grid), model.embed_pixels(pixels), atol=1e-6)
    with pytest.raises(ValueError, match="need the encoder's grid: 1 \\+ 4x4"):
        model.embed_features(grid[:, :9])
    with pytest.raises(ValueError, match="expected pixels"):
        model.embed_features(grid[..., :5])
    from_input = build(tiny_vit_folder, tiny_bert_folder, image={"sampling_stage": "input"})
    with pytest.raises(ValueError, match="sampling_stage is 'input'"):
        from_input.embed_features(grid)


def test_one_view_takes_any_number_of_features_under_a_mask(tiny_vit_folder, tiny_bert_folder):
    model = build(tiny_vit_folder, tiny_bert_folder, num_views=1, block_width=16).eval()
    features = torch.randn(2, 5, 32)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    with torch.no_grad():
        found = model.embed_features(features, mask)
        assert found.shape == (2, 1, 16)
        assert torch.allclose(found[1], model.embed_features(features[1:, :3])[0], atol=1e-5)


def test_training_views_are_drawn_and_evaluation_views_fixed(model):
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        model.train()
        assert not torch.allclose(model.embed_views(pixels), model.embed_views(pixels))
        model.eval()
        assert torch.equal(model.embed_views(pixels), model.embed_views(pixels))


def test_save_and_load_are_exact(model, pictures, tmp_path):
    images, texts = model.encode_images(pictures), model.encode_texts(["a dog", "two birds"])
    model.save_pretrained(tmp_path / "m")
    again = AVSE.from_pretrained(tmp_path / "m")
    assert again.fingerprint == model.fingerprint and not again.training
    assert np.array_equal(again.encode_images(pictures), images)
    assert np.array_equal(again.encode_texts(["a dog", "two birds"]), texts)
    with pytest.raises(FileExistsError, match="--force"):
        model.save_pretrained(tmp_path / "m")
    (tmp_path / "m").rename(tmp_path / "moved")
    assert np.array_equal(AVSE.from_pretrained(tmp_path / "moved").encode_images(pictures[:1]), images[:1])


def test_fingerprint_follows_weights(model):
    before = model.fingerprint
    model.train()
    with torch.no_grad():
        model.image_head.project.bias += 1
    assert model.eval().fingerprint != before


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest"])
def test_a_damaged_folder_is_refused(tiny_vit_folder, tiny_bert_folder, tmp_path, damage):
    build(tiny_vit_folder, tiny_bert_folder).save_pretrained(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "flip":
        data[-5] ^= 1
        weights.write_bytes(data)
    elif damage == "cut":
        weights.write_bytes(data[:-100])
    elif damage == "missing":
        weights.unlink()
    else:
        (tmp_path / "m" / "manifest.json").unlink()
    with pytest.raises(ManifestError, match="manifest.json" if damage == "manifest" else "model.safetensors"):
        AVSE.from_pretrained(tmp_path / "m")


def test_who_may_read_one_file_of_a_model_may_read_all(model, tmp_path):
    files = [path for path in model.save_pretrained(tmp_path / "m").rglob("*") if path.is_file()]
    assert len(files) > 4 and len({path.stat().st_mode for path in files}) == 1


def test_weights_of_another_configuration_are_named(tiny_vit_folder, tiny_bert_folder, tmp_path):
    from avse.checkpoint import load_tensors, load_weights

    build(tiny_vit_folder, tiny_bert_folder).save_pretrained(tmp_path / "m")
    tensors = load_tensors(tmp_path / "m" / "model.safetensors")
    other = build(tiny_vit_folder, tiny_bert_folder, embed_dim=24)
    with pytest.raises(CheckpointError, match=r"image_head.project.bias has shape \(16,\), the model \(24,\)"):
        load_weights(other, tensors, tmp_path)
    tensors.pop("text_head.norm.bias")
    with pytest.raises(CheckpointError, match="text_head.norm.bias is missing"):
        load_weights(build(tiny_vit_folder, tiny_bert_folder), tensors, tmp_path)


def test_no_folder_and_no_download(tmp_path):
    with pytest.raises(CheckpointError, match="allow_download=True"):
        AVSE.from_pretrained(tmp_path / "nothing")


def test_a_bad_picture_is_named(model, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a picture")
    with pytest.raises(ImageError, match="bad.jpg"):
        model.encode_images([bad])


def test_frozen_encoders_stay_frozen_and_fine_tuned_ones_learn(tiny_vit_folder, tiny_bert_folder):
    frozen = build(tiny_vit_folder, tiny_bert_folder).train()
    assert not frozen.image_encoder.training and not any(p.requires_grad for p in frozen.text_encoder.parameters())
    tuned = build(tiny_vit_folder, tiny_bert_folder, image={"frozen": False}, text={"frozen": False}).train()
    assert tuned.image_encoder.training and any(p.requires_grad for p in tuned.text_encoder.parameters())


def test_swin_bert_works_end_to_end(tiny_swin_folder, tiny_bert_folder, pictures):
    model = build(tiny_swin_folder, tiny_bert_folder).eval()
    assert model.encode_images(pictures).shape == (7, 4, 8)


def test_the_encoders_that_ship_give_the_same_rows_alone_in_any_batch_and_order(pictures):
    torch.manual_seed(0)
    model = AVSE(ModelConfig()).eval()
    together = model.encode_images(pictures)
    assert together.shape == (7, model.num_image_blocks, model.block_width)
    order = [5, 2, 0, 6, 1, 4, 3]
    assert np.abs(model.encode_images([pictures[i] for i in order], batch_size=4) - together[order]).max() < 1e-5
    assert np.abs(model.encode_images(pictures[3]) - together[3]).max() < 1e-5
    texts = ["a dog", "a sailing ship on the stormy sea near a lighthouse", "tree"]
    found = model.encode_texts(texts)
    for text, row in zip(texts, found):
        assert np.abs(model.encode_texts(text) - row).max() < 1e-5


def test_vse_plus_plus_is_the_cosine_of_means(tiny_vit_folder, tiny_bert_folder):
    start = build(tiny_vit_folder, tiny_bert_folder).config
    recipe = apply_preset(Recipe(model=start), "vse_plus_plus")
    assert recipe.train.objective == "hinge" and recipe.train.hard_negative_start_epoch == 1
    model = AVSE(recipe.model).eval()
    pixels = torch.randn(2, 3, *model.image_encoder.pixels.size, generator=torch.Generator().manual_seed(0))
    tokens = model.text_encoder.tokenize(["a red dog", "a cat on a beach near the river"])
    with torch.no_grad():
        image = torch.stack([model.image_head.project(row).mean(0) for row in model.image_encoder(pixels)])
        head, texts = model.text_head, []
        for row, mask in zip(model.text_encoder(tokens.input_ids, tokens.attention_mask), tokens.attention_mask):
            real = row[mask.bool()]
            texts.append(head.norm((head.project(real) + head.mlp(real)).mean(0)))
        expected = torch.nn.functional.cosine_similarity(image[:, None], torch.stack(texts)[None], dim=-1)
        found = model.similarity(
            model.embed_pixels(pixels).numpy(), model.embed_tokens(tokens.input_ids, tokens.attention_mask).numpy()
        )
    assert np.abs(found - expected.numpy()).max() < 1e-5
