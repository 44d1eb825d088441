"""Explanations add up to the model's own score, cell by cell and word by word as a plain loop finds them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from avse.encoders import EncoderError
from avse.explain import explain, explain_features
from avse.explain.gradient import split_pixels
from avse.explain.split import split_score
from avse.images import ImageError
from avse.model import AVSE

TEXT = "a dog sits near the zebra, jumping"


def build(image, text, **changes):
    torch.manual_seed(1)
    values = {"embed_dim": 16, "block_width": 8, "keep": 0.5, **changes}
    image, text = ImageEncoderConfig(**image), TextEncoderConfig(**text)
    model = AVSE(ModelConfig(image_encoder=image, text_encoder=text, **values), captions=[TEXT] * 9)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "head" in name:  # so that biases and the norm's scale are not 0 and 1
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


KINDS = {
    "vit, output": ({}, {}),
    "vit, input": ({"sampling_stage": "input"}, {}),
    "vit, one view": ({}, {"num_views": 1}),
    "vit, mean": ({}, {"pooling": "mean"}),
    "vit, groups": ({}, {"sampling": "groups", "num_views": 3}),
    "vit, one block": ({}, {"block_width": 16, "num_views": 4}),
    "vit, plain batch norm": ({"sampling_stage": "input"}, {"masked_batch_norm": False, "num_views": 1}),
    "swin": ({"source": "swin"}, {}),
    "cnn": ({"source": "efficientnet-lite0", "resolution": 96}, {}),
}


@pytest.fixture(params=KINDS)
def model(request, tiny_vit_folder, tiny_swin_folder, tiny_bert_folder):
    image, changes = KINDS[request.param]
    source = {"swin": tiny_swin_folder}.get(image.get("source"), image.get("source", tiny_vit_folder))
    return build({**image, "source": str(source)}, {"source": str(tiny_bert_folder)}, **changes)


@pytest.fixture
def vit(tiny_vit_folder, tiny_bert_folder):
    return build({"source": str(tiny_vit_folder)}, {"source": str(tiny_bert_folder)})


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8))


def score_of(model, picture, text=TEXT):
    return float(model.similarity(model.encode_images([picture]), model.encode_texts([text]))[0, 0])


def check_sums(found, score):
    assert found.method == "exact"
    assert found.score == pytest.approx(score, abs=2e-6)
    assert sum(match.score for match in found.matches) == pytest.approx(found.score, abs=1e-12)
    assert float(found.heats.sum(dtype=np.float64)) + found.beyond == pytest.approx(found.score, abs=1e-6)
    assert sum(word.score for word in found.words) + found.beside == pytest.approx(found.score, abs=1e-12)
    assert sum(match.share for match in found.matches) == pytest.approx(1)


def test_the_parts_add_up_to_the_models_own_score(model, picture):
    found = explain(model, picture, TEXT)
    check_sums(found, score_of(model, picture))
    assert found.grid == model.image_encoder.grid and found.heats.shape == (model.num_text_blocks, *found.grid)
    assert np.abs(found.heat).max() > 0 and found.frame == (0, 0, 1, 1) and found.image is picture
    images, texts = model.encode_images(picture), model.encode_texts(TEXT)
    for match in found.matches:
        cosines = images @ texts[match.text_block]
        assert match.image_block == cosines.argmax() and match.score == pytest.approx(cosines.max(), abs=1e-6)
        assert match.view == match.image_block // (model.config.embed_dim // model.block_width)


def naive_heats(model, picture, text):
    """Sort, weigh, multiply and centre one value at a time, in Python's floats."""
    encoder, config = model.image_encoder, model.config
    with torch.no_grad():
        pixels = torch.from_numpy(encoder.load_pixels(picture))[None]
        tokens = model.image_tokens(pixels)[0]
        places = model.sampling(encoder.grid, 1)[0].tolist()
        texts = model.encode_texts(text).astype(float)
        matrix, bias = model.image_head.project.weight.double(), model.image_head.project.bias.double()
        prefix = encoder.num_prefix
        count = prefix + len(places[0])
        weights = model.image_head.pool.weights(torch.tensor([count]))[0].tolist()
        supplied, pooled = [], []
        for view, cells in enumerate(places):
            rows = tokens[view] if tokens.ndim == 3 else tokens[[*range(prefix), *(prefix + cell for cell in cells)]]
            values = (rows.double() @ matrix.T + bias).tolist()
            parts, sums = {}, [0.0] * config.embed_dim
            for d in range(config.embed_dim):
                column = [row[d] for row in values]
                mean = sum(column[prefix:]) / len(cells)
                order = sorted(range(count), key=lambda k: -column[k])  # sorted() is stable
                for rank, k in enumerate(order):
                    sums[d] += weights[rank] * column[k]
                    if k >= prefix:
                        parts[cells[k - prefix], d] = weights[rank] * (column[k] - mean)
            supplied.append(parts)
            pooled.append(sums)
    heats = np.zeros((model.num_text_blocks, encoder.grid[0] * encoder.grid[1]))
    width, per_view = model.block_width, config.embed_dim // model.block_width
    for j in range(model.num_text_blocks):
        best = None
        for i in range(model.num_image_blocks):
            view, first = i // per_view, i % per_view * width
            block = pooled[view][first : first + width]
            length = sum(value * value for value in block) ** 0.5
            score = sum(value * t for value, t in zip(block, texts[j])) / length
            if best is None or score > best[0]:
                best = score, view, first, length
        _, view, first, length = best
        for (cell, d), value in supplied[view].items():
            if first <= d < first + width:
                heats[j, cell] += value * texts[j][d - first] / length
    return heats.reshape(-1, *encoder.grid)


@pytest.mark.parametrize("stage", ["output", "input"])
def test_every_cell_is_what_a_plain_loop_finds(tiny_vit_folder, tiny_bert_folder, picture, stage):
    image = {"source": str(tiny_vit_folder), "sampling_stage": stage}
    model = build(image, {"source": str(tiny_bert_folder)})
    found = explain(model, picture, TEXT)
    assert np.abs(found.heats - naive_heats(model, picture, TEXT)).max() < 1e-6
    cells = model.sampling(found.grid, 1)[0]
    for match, heat in zip(found.matches, found.heats):  # nothing comes from cells that the view left out
        seen = set(cells[match.view].tolist())
        assert {cell for cell, value in enumerate(heat.ravel()) if value} <= seen


def test_every_word_is_what_a_plain_loop_finds(vit, picture):
    encoder, head = vit.text_encoder, vit.text_head
    with torch.no_grad():
        batch = encoder.tokenize([TEXT])
        rows = head.features(encoder(batch.input_ids, batch.attention_mask), batch.attention_mask)[0].double().numpy()
        weights = head.pool.weights(torch.tensor([len(rows)]))[0].double().numpy()
        gain = head.norm.weight.double().numpy()
    parts = np.zeros_like(rows)
    for d in range(rows.shape[1]):
        for rank, k in enumerate(sorted(range(len(rows)), key=lambda k: -rows[k, d])):
            parts[k, d] = weights[rank] * rows[k, d]
    deviation = np.sqrt(parts.sum(0).var() + head.norm.eps)
    parts = gain * (parts - parts.mean(axis=1, keepdims=True)) / deviation
    whole, images = parts.sum(0) + head.norm.bias.detach().double().numpy(), vit.encode_images(picture)
    found = explain(vit, picture, TEXT)
    said = np.zeros(len(rows))
    for match in found.matches:
        columns = slice(8 * match.text_block, 8 * match.text_block + 8)
        said += parts[:, columns] @ images[match.image_block] / np.linalg.norm(whole[columns])
    names = encoder.tokenizer.convert_ids_to_tokens(batch.input_ids[0].tolist())
    pieces, k = [], 0
    for word in found.words:  # a word takes its own pieces, in order
        while names[k] == "[CLS]":
            k += 1
        end = k + 1
        while names[end].startswith("##"):
            end += 1
        assert "".join(name.removeprefix("##") for name in names[k:end]) in (word.word.lower(), "[UNK]")
        pieces.append(said[k:end].sum())
        k = end
    assert names[k] == "[SEP]" and k == len(names) - 1
    assert np.abs(np.array(pieces) - [word.score for word in found.words]).max() < 1e-6
    assert [TEXT[word.start : word.end] for word in found.words] == [word.word for word in found.words]
    assert [word.word for word in found.words] == ["a", "dog", "sits", "near", "the", "zebra", ",", "jumping"]


def test_a_sentence_without_words_and_a_bigru(tiny_vit_folder, picture):
    text = {"source": "bigru", "vectors": None, "hidden": 32, "min_count": 1, "frozen": False}
    model = build({"source": str(tiny_vit_folder)}, text)
    found = explain(model, picture, "A dog's İstanbul,  dog!")
    check_sums(found, score_of(model, picture, "A dog's İstanbul,  dog!"))
    words = [(word.word, word.start, word.end) for word in found.words]
    assert words[:3] == [("A", 0, 1), ("dog", 2, 5), ("s", 6, 7)] and words[-1] == ("dog", 19, 22)
    silent = explain(model, picture, "...")
    assert silent.words == () and silent.beside == pytest.approx(silent.score)


def test_regions_with_mask_and_boxes(tiny_bert_folder):
    image = {"source": "regions", "num_regions": 6, "width": 32}
    model = build(image, {"source": str(tiny_bert_folder)}, sampling="groups")
    features = torch.randn(6, 32)
    features[4] = float("nan")  # padding may hold anything
    mask = np.array([1, 1, 1, 1, 0, 1], bool)
    boxes = np.random.default_rng(0).random((6, 4))
    found = explain_features(model, features, TEXT, mask, boxes)
    with torch.no_grad():
        blocks = model.embed_features(features[None], torch.from_numpy(mask)[None]).numpy()
    check_sums(found, float(model.similarity(blocks, model.encode_texts([TEXT]))[0, 0]))
    assert found.grid == (1, 6) and np.allclose(found.boxes, boxes) and not found.heats[:, 0, 4].any()
    with pytest.raises(ValueError, match=r"\(5, 4\); expected \(6, 4\)"):
        explain_features(model, features, TEXT, mask, boxes[:5])
    with pytest.raises(EncoderError, match="no pictures"):
        explain(model, "dog.jpg", TEXT)


def test_cached_grids_explain_as_their_picture(vit, picture):
    with torch.no_grad():
        grid = vit.image_encoder(torch.from_numpy(vit.image_encoder.load_pixels(picture))[None])[0]
    by_grid, by_picture = explain_features(vit, grid.numpy(), TEXT, image=picture), explain(vit, picture, TEXT)
    assert np.allclose(by_grid.heats, by_picture.heats, atol=1e-7) and by_grid.grid == (4, 4)
    assert by_grid.to_dict()["words"] == by_picture.to_dict()["words"]


def test_modes_and_gradients_are_left_as_they_were(vit, picture):
    quiet = explain(vit, picture, TEXT)
    fingerprint = vit.fingerprint
    assert not vit.training and vit.fingerprint == fingerprint
    vit.train()
    assert np.array_equal(explain(vit, picture, TEXT).heats, quiet.heats) and vit.training and vit.text_head.training
    with pytest.raises(ImageError):
        explain(vit, b"no picture", TEXT)
    assert vit.training and all(parameter.grad is None for parameter in vit.parameters())


def test_json(vit, picture):
    found = explain(vit, picture, TEXT)
    values = json.loads(json.dumps(found.to_dict()))
    assert set(values) == set("text score upper method matches words grid heat heats beyond beside frame boxes".split())
    assert values["upper"] == 2 and values["method"] == "exact" and values["boxes"] is None
    assert np.allclose(np.sum(values["heats"], axis=0), values["heat"], atol=1e-6)


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2"])
@pytest.mark.parametrize("views", [1, 2])
def test_pairs_are_explained_by_gradients(pair_folders, picture, family, views):
    model = AVSE.from_dual_encoder(pair_folders[family], num_views=views)
    text = "two cats on a beach"
    found = explain(model, picture, text)
    assert found.method == "gradient" and found.score == pytest.approx(score_of(model, picture, text), abs=1e-5)
    assert np.abs(found.heats).max() > 1e-5 * abs(found.score)
    assert "".join(word.word for word in found.words) == text.replace(" ", "")
    assert all(parameter.grad is None for parameter in model.parameters())

    model.double()
    pixels = torch.from_numpy(model.image_encoder.load_pixels(picture))[None].double()
    batch = model.text_encoder.tokenize([text])
    with torch.no_grad():
        split = split_pixels(model, pixels, text)

    def slopes(module, count):  # the score's derivative when one first token grows
        found = []
        for token in range(count):
            scores = []
            for factor in (1 - 1e-4, 1 + 1e-4):
                scale = torch.ones(count, 1, dtype=torch.float64)
                scale[token] = factor
                handle = module.register_forward_hook(lambda _, __, output, scale=scale: output * scale)
                with torch.no_grad():
                    images, texts = (
                        model.embed_pixels(pixels),
                        model.embed_tokens(batch.input_ids, batch.attention_mask),
                    )
                scores.append(float((texts[0] @ images[0].T).amax(1).sum()))
                handle.remove()
            found.append((scores[1] - scores[0]) / 2e-4)
        return np.array(found)

    tower = model.image_encoder.model
    for parts, module in (
        (split.tokens.sum(axis=0), tower.pre_layrnorm if family == "clip" else tower.embeddings),
        (split.words, model.text_encoder.model.get_input_embeddings()),
    ):
        by_growth = slopes(module, len(parts))
        assert np.abs(parts - by_growth).max() < 1e-3 * np.abs(by_growth).max()
    prefix = model.image_encoder.num_prefix
    assert np.abs(found.heats.sum(axis=0).ravel() - split.tokens.sum(axis=0)[prefix:]).max() < 1e-4


def test_features_of_a_pair(pair_folders, picture):
    model = AVSE.from_dual_encoder(pair_folders["siglip"], num_views=2)
    with torch.no_grad():
        tokens = model.image_encoder(torch.from_numpy(model.image_encoder.load_pixels(picture))[None])[0]
    found = explain_features(model, tokens, "two cats")
    assert found.method == "gradient" and found.grid == (4, 4) and np.abs(found.heats).max() > 0
    assert found.score == pytest.approx(score_of(model, picture, "two cats"), abs=1e-5)
    mask = torch.ones(16, dtype=torch.bool)
    explain_features(model, tokens, "two cats", mask)
    mask[3] = False
    with pytest.raises(ValueError, match="sees every token"):
        explain_features(model, tokens, "two cats", mask)


def test_features_behind_clip_have_no_part_in_its_score(pair_folders):
    model = AVSE.from_dual_encoder(pair_folders["clip"])
    with pytest.raises(ValueError, match=r"the CLS token alone makes the score.*explain\(\) takes the picture"):
        explain_features(model, torch.randn(17, 32), "two cats")


def by_gradient(model, tokens, text, mask=None):
    """Gradient x value at the projected tokens of a picture, lengths of blocks held: what S's own chain rule says."""
    leaves = []
    handle = model.image_head.project.register_forward_hook(
        lambda _, __, output: leaves.append(output.detach().double().requires_grad_()) or leaves[0]
    )
    views = model.pool_views(tokens, mask)[0]
    handle.remove()
    blocks = views.double().reshape(-1, model.block_width)
    texts = torch.from_numpy(model.encode_texts(text)).double()
    score = (texts @ (blocks / blocks.norm(dim=1, keepdim=True).detach()).T).amax(1).sum()
    (slope,) = torch.autograd.grad(score, leaves[0])
    return torch.nan_to_num(slope * leaves[0]).sum(-1).detach().numpy(), score.item()


def words_by_gradient(model, text, images):
    """The same of a sentence, at the features before the pooling, the LayerNorm's deviation held too."""
    encoder, head = model.text_encoder, model.text_head
    batch = encoder.tokenize([text])
    ids, mask = batch.input_ids, batch.attention_mask
    with torch.no_grad():
        leaf = head.features(encoder(ids, mask), mask).double()
    pooled = head.pool(leaf.requires_grad_(), mask.bool())[0]
    deviation = (pooled.var(correction=0) + head.norm.eps).sqrt().detach()
    vector = head.norm.weight * (pooled - pooled.mean()) / deviation + head.norm.bias
    blocks = vector.reshape(-1, model.block_width)
    score = ((blocks / blocks.norm(dim=1, keepdim=True).detach()) @ torch.from_numpy(images).double().T).amax(1).sum()
    (slope,) = torch.autograd.grad(score, leaf)
    return torch.nan_to_num(slope * leaf)[0].sum(-1).detach().numpy(), score.item()


def check_by_gradient(model, tokens, text, images, mask=None):
    with torch.no_grad():
        split = split_score(model, tokens, text, mask, centred=False)
        places = model.kept_tokens(tokens, mask)[0][0]
    cells, score = by_gradient(model, tokens, text, mask)
    expected = cells[0]
    if tokens.ndim == 4:  # a view's tokens are its own: laid on their places
        expected = np.zeros(split.tokens.shape[1])
        np.add.at(expected, places.numpy().ravel(), cells.ravel())
    assert split.scores.sum() == pytest.approx(score, abs=1e-6)
    assert np.abs(expected).max() > 1e-3 and np.abs(split.tokens.sum(axis=0) - expected).max() < 1e-6
    words, score = words_by_gradient(model, text, images)
    assert split.scores.sum() == pytest.approx(score, abs=1e-6)
    assert np.abs(words).max() > 1e-3 and np.abs(split.words - words).max() < 1e-6


def test_every_kind_is_split_as_its_gradient_says(model, picture):
    with torch.no_grad():
        tokens = model.image_tokens(torch.from_numpy(model.image_encoder.load_pixels(picture))[None])
    check_by_gradient(model, tokens, TEXT, model.encode_images(picture))


def test_regions_and_a_bigru_are_split_as_their_gradient_says(tiny_bert_folder):
    image = {"source": "regions", "num_regions": 6, "width": 32}
    features, mask = torch.randn(1, 6, 32, generator=torch.manual_seed(2)), torch.tensor([[1, 1, 1, 1, 0, 1]]).bool()
    bigru = {"source": "bigru", "vectors": None, "hidden": 32, "min_count": 1, "frozen": False}
    for text in ({"source": str(tiny_bert_folder)}, bigru):
        model = build(image, text, sampling="groups")
        with torch.no_grad():
            images = model.embed_features(features, mask)[0].numpy()
        check_by_gradient(model, features, TEXT, images, mask)


@pytest.mark.parametrize("precision", [torch.float16, torch.float64])
def test_features_of_any_precision(vit, precision):
    grid = torch.randn(17, 32, generator=torch.manual_seed(3)).to(precision)
    assert np.array_equal(explain_features(vit, grid, TEXT).heats, explain_features(vit, grid.float(), TEXT).heats)


def test_nothing_to_explain_is_refused(vit, picture):
    with pytest.raises(ValueError, match="the mask hides all 17 features"):
        explain_features(vit, torch.randn(17, 32), TEXT, torch.zeros(17, dtype=torch.bool))
    for text in ("", " \n"):
        with pytest.raises(ValueError, match="the sentence is empty"):
            explain(vit, picture, text)
        with pytest.raises(ValueError, match="the sentence is empty"):
            explain_features(vit, torch.randn(17, 32), text)


def test_a_cut_sentence_warns_as_where_it_is_encoded(vit, picture, recwarn):
    text = "a dog " * 80
    vit.encode_texts(text)
    explain(vit, picture, text)
    explain_features(vit, torch.randn(17, 32), text)
    told = [(str(one.message), one.filename) for one in recwarn if "was cut at" in str(one.message)]
    assert len(told) == 3 and set(told) == {told[0]} and told[0][1] == __file__
    explain(vit, picture, TEXT)
    assert len(recwarn) == 3
