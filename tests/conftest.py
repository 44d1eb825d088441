"""Small encoders of random weights on disk, for every test that needs one (no network, fixed seeds)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a an the and on in at of with two three red green blue yellow black white dog cat "
    "bird tree house car boat man woman child ball beach road river grass field sky sits runs jumps stands plays small "
    "large left right under above circle square triangle star is are near picture photo ##s ##ing ##ed ##er b c d e f "
    "g h i j k l m n o p q r s t u v w x y z ##a ##b ##c ##d ##e ##f ##g ##h ##i ##j ##k ##l ##m ##n ##o ##p ##q ##r "
    "##t ##u ##v ##w ##x ##y ##z 0 1 2 3 4 5 6 7 8 9 . ,"
).split()


@pytest.fixture(scope="session")
def tiny_vit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT of 32 channels and 2 blocks: 32x32 pixels, 8x8 patches, a 4x4 grid behind one CLS token."""
    import torch
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("encoders") / "tiny-vit"
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8
    )
    ViTModel(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_swin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Swin whose last grid is 4x4 cells of 32 channels at 32x32 pixels, without CLS."""
    import torch
    from transformers import SwinConfig, SwinModel

    folder = tmp_path_factory.mktemp("encoders") / "tiny-swin"
    torch.manual_seed(0)
    config = SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2, mlp_ratio=2.0
    )
    SwinModel(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of 32 channels and 2 blocks with a WordPiece vocabulary of some 130 entries and 64 positions."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("encoders") / "tiny-bert"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).eval().save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(WORDS)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"].startswith("BertTokenizer")
    return folder
