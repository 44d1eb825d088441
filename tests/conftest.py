"""Small encoders of random weights on disk, for every test that needs one (no network, fixed seeds)."""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import sys
from pathlib import Path

import pytest

from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a an the and on in at of with two three red green blue yellow black white dog cat "
    "bird tree house car boat man woman child ball beach road river grass field sky sits runs jumps stands plays small "
    "large left right under above circle square triangle star is are near picture photo ##s ##ing ##ed ##er b c d e f "
    "g h i j k l m n o p q r s t u v w x y z ##a ##b ##c ##d ##e ##f ##g ##h ##i ##j ##k ##l ##m ##n ##o ##p ##q ##r "
    "##t ##u ##v ##w ##x ##y ##z 0 1 2 3 4 5 6 7 8 9 . ,"
).split()


def pytest_collection_finish() -> None:
    """What the tests import stays: no collection need walk through it again, which takes a second each time."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A training in a test draws no curves, which are most of its time; tests of the curves put `draw_curves` back."""
    if loop := sys.modules.get("avse.trainer.loop"):
        loop.draw_curves = lambda *_: False


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


@pytest.fixture(scope="session")
def tiny_config(tiny_vit_folder: Path, tiny_bert_folder: Path) -> ModelConfig:
    """A model of these two: P, Q, C = 4, 2, 8."""
    encoders = ImageEncoderConfig(source=str(tiny_vit_folder)), TextEncoderConfig(source=str(tiny_bert_folder))
    return ModelConfig(image_encoder=encoders[0], text_encoder=encoders[1], embed_dim=16, block_width=8)


GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def golden_folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The configurations of the authors' small encoders, with a vocabulary and without weights: ViT and BERT."""
    configs = json.loads((GOLDEN / "config.json").read_text())
    folder = tmp_path_factory.mktemp("authors")
    for name, part in (("vit", "vision"), ("bert", "text")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(configs[part]))
    shutil.copy(GOLDEN / "vocab.txt", folder / "bert")
    return folder / "vit", folder / "bert"


@pytest.fixture(scope="session")
def golden_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authors' small weights in the layout of their checkpoints."""
    import torch
    from safetensors.torch import load_file

    path = tmp_path_factory.mktemp("authors") / "model_best.pth"
    options = argparse.Namespace(embed_size=128, block_dim=[32], img_res=224, dataset="f30k", lr_schedules=[9, 15])
    weights = load_file(GOLDEN / "vit_model.safetensors")
    torch.save({"model": weights, "opt": options, "epoch": 3, "best_rsum": 123.4, "Eiters": 77}, path)
    return path


def _clip_tokenizer():
    """Byte-level BPE without merges: every text has tokens, letters and ends of words."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=77)


def _gemma_tokenizer():
    """The tokenizer of SigLIP 2 as its checkpoints are set up: padded on the right, no attention mask."""
    from tokenizers.processors import TemplateProcessing
    from transformers import Siglip2Tokenizer

    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    vocab = {name: i for i, name in enumerate([*special, *"abcdefghijklmnopqrstuvwxyz0123456789.,"])}
    tokenizer = Siglip2Tokenizer(
        vocab=vocab, merges=[], padding_side="right", model_input_names=["input_ids"], model_max_length=64
    )
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return tokenizer


def _save_spread(model, folder: Path) -> None:
    """Save a pair with weights so large that different inputs give different vectors, and a scale (and bias)."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.5) if name.startswith("logit_") else parameter.normal_(std=0.2)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A CLIP, a SigLIP and a NaFlex SigLIP 2 of 32 channels and 2 blocks: 32x32 pixels, a 4x4 grid."""
    import torch
    import transformers as t

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    folders = {name: tmp_path_factory.mktemp("pairs") / f"tiny-{name}" for name in ("clip", "siglip", "siglip2")}
    torch.manual_seed(0)
    tokenizer = _clip_tokenizer()
    text = {**small, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 512}
    vision = {**small, "image_size": 32, "patch_size": 8}
    _save_spread(t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)), folders["clip"])
    tokenizer.save_pretrained(folders["clip"])
    t.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folders["clip"])
    tokenizer = _gemma_tokenizer()
    text = {**small, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "pad_token_id": 0}
    text |= {"bos_token_id": 2, "eos_token_id": 1}
    _save_spread(t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision)), folders["siglip"])
    images = t.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    t.SiglipProcessor(images, tokenizer).save_pretrained(folders["siglip"])
    vision = {**small, "num_patches": 16, "patch_size": 8}
    _save_spread(t.Siglip2Model(t.Siglip2Config(text_config=text, vision_config=vision)), folders["siglip2"])
    images = t.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    t.Siglip2Processor(images, tokenizer).save_pretrained(folders["siglip2"])
    return folders
