"""What `avse bench train` measures on: ViT-B/16 and BERT-base of random weights, sentences and pictures it makes.

Knows no clock.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel, BertTokenizer, ViTConfig, ViTModel

from avse.benchmarks.indexing import make_pictures
from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from avse.data import PairDataset
from avse.encoders.base import quiet_transformers
from avse.model import AVSE
from avse.trainer.step import Batch

PICTURE = (500, 375)
WORDS, LETTERS = 400, (2, 9)
_STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_TINY_PICTURE = {"image_size": 32, "patch_size": 8}


def make_encoders(work: Path, small: bool) -> None:
    """Write a ViT, a BERT and a small vocabulary, random weights, no dropout, below a folder; `small`: tiny ones."""
    shape: dict[str, Any] = _STILL | (_TINY if small else {})
    torch.manual_seed(0)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_words()]
    tokenizer = BertTokenizer(vocab={name: number for number, name in enumerate(names)}, model_max_length=64)
    with quiet_transformers():
        ViTModel(ViTConfig(**shape, **(_TINY_PICTURE if small else {}))).save_pretrained(work / "vit")
        BertModel(BertConfig(**shape)).save_pretrained(work / "bert")
        tokenizer.save_pretrained(work / "bert")


def make_model(work: Path) -> AVSE:
    """Build V = 2 views at the input, keep 0.8, D = 512, C = 256 on the encoders below a folder; no dropout."""
    image = ImageEncoderConfig(source=str(work / "vit"), sampling_stage="input", frozen=False)
    text = TextEncoderConfig(source=str(work / "bert"), frozen=False)
    torch.manual_seed(0)
    return AVSE(ModelConfig(image_encoder=image, text_encoder=text, embed_dim=512, block_width=256, dropout=0.0))


def make_captions(count: int) -> list[str]:
    """Make sentences of 8 to 30 tokens, 13 in the mean, the two at the ends counted; always the same."""
    random, words = np.random.default_rng(0), _words()
    lengths = np.clip(8 + np.round(random.gamma(1.4, 3.7, count)), 8, 30).astype(int)
    return [" ".join(random.choice(words, length - 2)) for length in lengths]


def make_batch(model: AVSE, count: int) -> Batch:
    """Make so many pairs of random pixels and captions, with views; the model is then in training mode."""
    random, captions = torch.Generator().manual_seed(0), make_captions(count)
    pixels = torch.randn(count, 3, *model.image_encoder.pixels.size, generator=random)
    tokens = model.text_encoder.tokenize(captions)
    views = model.train().sampling(model.image_encoder.grid, count, random)
    return Batch(pixels, tokens.input_ids, tokens.attention_mask, views, None, list(range(count)), captions)


def make_dataset(work: Path, images: int, captions: int) -> PairDataset:
    """Write so many JPEGs below a folder, and make so many captions of each."""
    make_pictures(work / "pictures", images, PICTURE)
    paths = tuple(sorted((work / "pictures").iterdir()))
    rows = np.repeat(np.arange(images, dtype=np.int64), captions)
    names, texts = tuple(path.name for path in paths), tuple(make_captions(images * captions))
    return PairDataset("made", "test", work, names, paths, texts, rows, (), ({},) * images)


def _words() -> list[str]:
    random, found = np.random.default_rng(1), dict[str, None]()
    while len(found) < WORDS:
        found["".join(random.choice(list("abcdefghijklmnopqrstuvwxyz"), random.integers(*LETTERS)))] = None
    return list(found)
