"""The loaders of models: their configurations, weights, vocabularies, and the authors' checkpoints."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from robust_loaders import Build, Fuzzed, loader


def tiny_model(request: Any) -> Path:
    """A saved model of the tiny ViT and BERT with a calibration, made once a session."""
    from avse import AVSE
    from avse.calibration import Calibration, Side
    from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig

    vit, bert = (request.getfixturevalue(name) for name in ("tiny_vit_folder", "tiny_bert_folder"))
    folder = Path(vit).parent / "robust-model"
    if not folder.exists():
        images, texts = ImageEncoderConfig(source=str(vit)), TextEncoderConfig(source=str(bert))
        model = AVSE(
            ModelConfig(image_encoder=images, text_encoder=texts, embed_dim=16, block_width=8, num_views=2)
        ).eval()
        side = Side((8, 16), (0.1, 0.2), 1.0, 0.0, 20, 0.5)
        model.calibration = Calibration(side, side)
        model.save_pretrained(folder)
    return folder


def _model_file(name: str) -> Build:
    def build(place: Path, request: Any) -> Fuzzed:
        from avse import files
        from avse.start import open_model

        shutil.copytree(tiny_model(request), place)

        def load() -> object:
            if name != files.MANIFEST:  # one who changes a file changes its digest, too
                (place / files.MANIFEST).unlink(missing_ok=True)
                files.write_manifest(place)
            return open_model(place).calibration

        kind = "json" if name.endswith(".json") else "bytes"
        names = (place.name, Path(name).name)
        if name.endswith(".safetensors"):
            raw = (place / name).read_bytes()
            size = int.from_bytes(raw[:8], "little")

            def wrap(header: bytes) -> bytes:
                return len(header).to_bytes(8, "little") + header + raw[8 + size :]

            return Fuzzed(place / name, load, "json", raw[8 : 8 + size], wrap, names)
        return Fuzzed(place / name, load, kind, names=names)

    return build


for _name in (
    *("config.json", "calibration.json", "manifest.json", "model.safetensors", "image_encoder/encoder.json"),
    *("image_encoder/config.json", "text_encoder/encoder.json", "text_encoder/config.json"),
    *("text_encoder/tokenizer.json", "text_encoder/tokenizer_config.json"),
):
    loader(f"model: {_name}", ms=60)(_model_file(_name))


def _pair_file(name: str) -> Build:
    def build(place: Path, request: Any) -> Fuzzed:
        from avse.start import open_model

        shutil.copytree(request.getfixturevalue("pair_folders")["clip"], place)
        return Fuzzed(place / name, lambda: open_model(place), "json", names=(place.name, name))

    return build


for _name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
    loader(f"CLIP folder: {_name}", ms=80)(_pair_file(_name))


@loader("model: vocabulary.json (BiGRU)", ms=10)
def _vocabulary(place: Path, _: Any) -> Fuzzed:
    from avse.config import TextEncoderConfig
    from avse.encoders import TextEncoder, build_text_encoder

    place.mkdir(parents=True)
    build_text_encoder(TextEncoderConfig(source="bigru", min_count=1, vectors=None), ["a dog", "a cat"]).save(place)
    path = place / "vocabulary.json"
    return Fuzzed(path, lambda: TextEncoder.from_saved(place).tokenize(["a dog"]), "json", names=(place.name,))


@loader("official .pth", ms=4)
def _official(place: Path, _: Any) -> Fuzzed:
    import torch

    from avse.official import read_official

    place.mkdir(parents=True)
    options = argparse.Namespace(embed_size=8, block_dim=[4], img_res=32)
    weights = {"img_enc.fc.weight": torch.ones(2, 2), "txt_enc.fc.bias": torch.zeros(2)}
    torch.save({"model": weights, "opt": options, "epoch": 1, "best_rsum": 2.5}, place / "best.pth")
    return Fuzzed(place / "best.pth", lambda: read_official(place / "best.pth"), "zip")
