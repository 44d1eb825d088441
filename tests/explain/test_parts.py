"""What explanations are made of: weights of tokens, words of tokens, what an encoder sees of a picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from avse.config import TextEncoderConfig
from avse.encoders import build_text_encoder
from avse.images import PixelSpec, seen_frame, to_pixels
from avse.pooling import GPO, MeanPool


@pytest.mark.parametrize("pool", [GPO, MeanPool])
@pytest.mark.parametrize("masked", [False, True])
def test_weighted_tokens_are_the_pooled_vector(pool, masked):
    torch.manual_seed(0)
    made = pool().eval()
    tokens = torch.randn(5, 9, 7).round(decimals=1)  # with ties
    mask = torch.arange(9) < torch.tensor([9, 1, 4, 8, 2])[:, None] if masked else None
    if masked:
        tokens[~mask] = 99.0
    with torch.no_grad():
        weights, pooled = made.token_weights(tokens, mask), made(tokens, mask)
    assert weights.shape == tokens.shape and torch.allclose((weights * tokens).sum(1), pooled, atol=1e-5)
    assert torch.allclose(weights.sum(1), torch.ones(5, 7), atol=1e-6)
    if masked:
        assert not weights[~mask].any()


def test_equal_values_take_their_places_in_order():
    torch.manual_seed(0)
    pool = GPO().eval()
    with torch.no_grad():
        by_place = pool.weights(torch.tensor([4]))[0]
        found = pool.token_weights(torch.tensor([[[1.0], [2.0], [2.0], [1.0]]]))[0, :, 0]
    assert torch.equal(found, by_place[[2, 0, 1, 3]])


def test_pieces_know_their_word(tiny_bert_folder):
    encoder = build_text_encoder(TextEncoderConfig(source=str(tiny_bert_folder), max_length=8))
    text = " Jumping  dog's"
    spans = encoder.word_spans(text)
    assert len(spans) == encoder.tokenize([text]).input_ids.shape[1] == 8  # cut there
    assert spans == [None, *[(1, 8)] * 5, (10, 13), None]  # j ##u ##m ##p ##ing, dog
    long = build_text_encoder(TextEncoderConfig(source=str(tiny_bert_folder), max_length=32))
    words = [text[slice(*span)] for span in dict.fromkeys(long.word_spans(text)) if span]
    assert words == ["Jumping", "dog", "'", "s"]


def test_words_where_nothing_is_known_of_them(tiny_bert_folder, monkeypatch):
    encoder = build_text_encoder(TextEncoderConfig(source=str(tiny_bert_folder)))
    count = encoder.tokenize(["a dog"]).input_ids.shape[1]
    monkeypatch.setattr(type(encoder.tokenizer), "is_fast", False)
    assert encoder.word_spans("a dog") == [None] * count


SPECS = [
    PixelSpec((32, 32), (0, 0, 0), (1, 1, 1)),
    PixelSpec((32, 32), (0, 0, 0), (1, 1, 1), shorter_side=32),
    PixelSpec((24, 32), (0, 0, 0), (1, 1, 1), shorter_side=40),
]


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (64, 160)])
@pytest.mark.parametrize("spec", SPECS)
def test_the_frame_is_what_the_pixels_show(size, spec):
    width, height = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)  # the colour tells the place
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels = to_pixels(Image.fromarray(ramp), spec)
    x0, y0, x1, y1 = seen_frame(size, spec)
    columns, rows = pixels[0].mean(0), pixels[1].mean(1)
    half_x, half_y = (x1 - x0) / spec.size[1] / 2, (y1 - y0) / spec.size[0] / 2
    assert columns[[0, -1]] == pytest.approx([x0 + half_x, x1 - half_x], abs=0.02)
    assert rows[[0, -1]] == pytest.approx([y0 + half_y, y1 - half_y], abs=0.02)
