"""Hub ids: the folder first, then this machine's copy, and the network only when the user says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch

from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from avse.encoders import EncoderError, build_image_encoder, build_text_encoder
from avse.encoders.hub import local_folder
from avse.model import AVSE


@pytest.fixture
def hub(tmp_path, monkeypatch, tiny_vit_folder, tiny_bert_folder, pair_folders):
    """A cache as huggingface_hub lays it out; any way to the network is an error."""
    cache, commit = tmp_path / "hub", "0123456789abcdef0123456789abcdef01234567"
    folders = {"org--vit": tiny_vit_folder, "org--bert": tiny_bert_folder, "org--clip": pair_folders["clip"]}
    for name, folder in folders.items():
        copy = cache / f"models--{name}"
        shutil.copytree(folder, copy / "snapshots" / commit)
        (copy / "refs").mkdir()
        (copy / "refs" / "main").write_text(commit)
    (cache / "models--org--half" / "refs").mkdir(parents=True)
    (cache / "models--org--half" / "refs" / "main").write_text(commit)
    half = cache / "models--org--half" / "snapshots" / commit
    half.mkdir(parents=True)
    shutil.copy(tiny_vit_folder / "config.json", half)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    real = huggingface_hub.snapshot_download

    def offline_only(name, **asked):
        assert asked["local_files_only"], f"{name} was asked of the network"
        return real(name, **asked)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline_only)
    return cache


def test_what_is_on_this_machine_is_used(hub, tiny_vit_folder, tmp_path, monkeypatch):
    image = build_image_encoder(ImageEncoderConfig(source="org/vit"))
    there = build_image_encoder(ImageEncoderConfig(source=str(tiny_vit_folder)))
    assert image.fingerprint() == there.fingerprint() and image.settings.source == "org/vit"
    assert build_text_encoder(TextEncoderConfig(source="org/bert")).width == 32
    assert AVSE.from_dual_encoder("org/clip", 2).config.image_encoder.sampling_stage == "input"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_vit_folder, tmp_path / "org" / "vit")
    assert local_folder("org/vit") == Path("org/vit")  # a folder of this name comes first


def test_a_saved_model_loads_without_the_id(hub, tmp_path):
    config = ModelConfig(
        image_encoder=ImageEncoderConfig(source="org/vit"),
        text_encoder=TextEncoderConfig(source="org/bert"),
        embed_dim=16,
        block_width=8,
    )
    model = AVSE(config).eval()
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(hub)
    loaded = AVSE.from_pretrained(tmp_path / "model")
    assert loaded.config.image_encoder.source == "org/vit"
    assert np.array_equal(loaded.encode_texts("a dog"), model.encode_texts("a dog"))


@pytest.mark.parametrize("name", ["org/other", "org/half"])
def test_what_is_not_there_is_refused(hub, name):
    with pytest.raises(
        EncoderError, match=f"{name} is no folder, and as a hub id it is not on this machine.*--allow-d"
    ):
        build_image_encoder(ImageEncoderConfig(source=name))
    with pytest.raises(EncoderError, match="not on this machine"):
        build_text_encoder(TextEncoderConfig(source=name))
    with pytest.raises(EncoderError, match="not on this machine"):
        AVSE.from_dual_encoder(name)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "/gone/away", "./x", "../x/y"])
def test_paths_are_no_ids(hub, name):
    with pytest.raises(EncoderError, match="is no folder: an encoder is a local transformers folder"):
        build_image_encoder(ImageEncoderConfig(source=name), allow_download=True)


def test_only_with_the_users_word_it_is_fetched_and_never_a_pickle(hub, tiny_vit_folder, monkeypatch):
    asked = []

    def fetch(name, **how):
        asked.append((name, how))
        if how["local_files_only"]:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        return str(tiny_vit_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(EncoderError):
        build_image_encoder(ImageEncoderConfig(source="org/new"))
    assert [how["local_files_only"] for _, how in asked] == [True]
    encoder = build_image_encoder(ImageEncoderConfig(source="org/new"), allow_download=True)
    assert encoder(torch.zeros(1, 3, 32, 32)).shape == (1, 17, 32)
    name, how = asked[-1]
    assert name == "org/new" and not how["local_files_only"]
    from huggingface_hub.utils import filter_repo_objects

    there = (
        "config.json model.safetensors model-00001-of-00002.safetensors model.safetensors.index.json tokenizer.json "
    )
    there += (
        "spiece.model preprocessor_config.json pytorch_model.bin tf_model.h5 modeling.py x.pt onnx/model.safetensors"
    )
    patterns = {"allow_patterns": how["allow_patterns"], "ignore_patterns": how["ignore_patterns"]}
    assert list(filter_repo_objects(there.split(), **patterns)) == there.split()[:7]


def test_a_failing_hub_is_said_in_one_line(hub, monkeypatch):
    def fetch(name, **how):
        if how["local_files_only"]:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not in the cache")
        raise OSError("no route to the host\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(EncoderError, match="^org/new could not be fetched from the hub: no route to the host$"):
        local_folder("org/new", allow_download=True)
