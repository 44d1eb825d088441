"""The authors' encoders of transformers 4, with small random weights: our encoders give what theirs gave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from avse.config import ImageEncoderConfig, TextEncoderConfig
from avse.encoders import build_image_encoder, build_text_encoder

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "vit_eval.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def folder_of(part: str, prefix: str, folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(json.loads((GOLDEN / "config.json").read_text())[part]))
    weights = load_file(GOLDEN / "vit_model.safetensors")
    chosen = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    save_file(chosen, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def test_views_before_the_last_norm(expected, tmp_path):
    source = folder_of("vision", "img_enc.visual_encoder.", tmp_path / "vit")
    settings = {"sampling_stage": "input", "final_norm": False, "pixels": "official"}
    encoder = build_image_encoder(ImageEncoderConfig(source=source, **settings))
    with torch.no_grad():
        embedded = encoder.model.embeddings(expected["images"])
        views = encoder.forward_views(expected["images"], expected["sampled_idx"])
    torch.testing.assert_close(embedded, expected["embedding_output"], rtol=1e-5, atol=1e-5)
    for view in (0, 1):
        torch.testing.assert_close(views[:, view], expected[f"enc_view{view}"], rtol=1e-5, atol=1e-5)


def test_tokens_of_bert(expected, tmp_path):
    source = folder_of("text", "txt_enc.bert.", tmp_path / "bert")
    shutil.copy(GOLDEN / "vocab.txt", tmp_path / "bert")
    encoder = build_text_encoder(TextEncoderConfig(source=source, max_length=64))
    ids = expected["captions"]
    mask = (torch.arange(ids.shape[1]) < expected["lengths"][:, None]).long()
    with torch.no_grad():
        tokens = encoder(ids, mask)
    real = mask.bool()
    torch.testing.assert_close(tokens[real], expected["bert_out"][real], rtol=1e-5, atol=1e-5)


def test_ids_of_the_tokenizer(tmp_path):
    source = folder_of("text", "txt_enc.bert.", tmp_path / "bert")
    shutil.copy(GOLDEN / "vocab.txt", tmp_path / "bert")
    encoder = build_text_encoder(TextEncoderConfig(source=source, max_length=64))
    captions = json.loads((GOLDEN / "captions.json").read_text())
    batch = encoder.tokenize([item["caption"] for item in captions])
    for row, item in enumerate(captions):
        ids = item["eval_ids"]
        assert batch.truncated[row] == (len(ids) > 64)
        cut = ids if len(ids) <= 64 else [*ids[:63], ids[-1]]
        assert batch.input_ids[row][batch.attention_mask[row].bool()].tolist() == cut
    assert 0 < int(batch.truncated.sum()) < len(captions)
