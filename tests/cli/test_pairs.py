"""A pair of transformers on the command line: as it is, and as the start of a training."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from avse.model import AVSE
from avse.start import build_model
from avse.trainer import Trainer, TrainingError

from .conftest import write_lines


@pytest.fixture
def colours(tmp_path):
    """Pictures of one colour each with a sentence of its own: what a pair of random weights can learn in no time."""
    folder = tmp_path / "colours"
    folder.mkdir()
    random, lines = np.random.default_rng(0), []
    for i, word in enumerate(
        "red dog; blue cat; a; green tree by the sea; x y z; 77; two; one bird; hills; io".split("; ")
    ):
        Image.new("RGB", (40, 40), tuple(random.integers(0, 255, 3).tolist())).save(folder / f"{i}.png")
        lines += [
            {"image": f"{i}.png", "captions": [word], "split": split} for split in ("train", "val")[: 1 + (i < 4)]
        ]
    write_lines(folder, lines)
    return folder


@pytest.mark.parametrize("name", ["clip", "siglip", "siglip2"])
def test_evaluate_index_search_a_pair_as_it_is(avse, pair_folders, scenes, tmp_path, caplog, name):
    caplog.set_level("INFO")
    folder, index = tmp_path / "models" / name, tmp_path / "i.avse"
    shutil.copytree(pair_folders[name], folder)
    said = avse("evaluate", folder, scenes, "--json", "--bootstrap", 0)
    assert said.code == 0, said.err
    assert f"{folder} is a pair of transformers ({name}), taken as it is: one view of 32 px" in caplog.text
    [report] = said.json
    assert 0 < report["rsum"] < 600
    cached = avse("evaluate", folder, scenes, "--json", "--bootstrap", 0, "--cache", tmp_path / "cache")
    assert abs(cached.json[0]["rsum"] - report["rsum"]) < 60 and any((tmp_path / "cache").iterdir())
    said = avse("index", scenes / "images", "--model", folder, "--out", index, "--json")
    assert said.code == 0 and said.lines == [] and said.json[0]["entries"] == 40
    found = avse("search", index, "a red star", "-k", 3, "--json")
    assert found.code == 0, found.err
    pair = AVSE.from_dual_encoder(folder)
    best = found.json[0]
    blocks = pair.encode_images([scenes / "images" / best["id"]])
    assert best["score"] == pytest.approx(
        float(pair.similarity(blocks, pair.encode_texts(["a red star"]))[0, 0]), abs=1e-4
    )
    said = avse("index", scenes / "images", "--out", index, "--json")  # the index finds the pair again
    assert said.code == 0 and said.json[0]["known"] == 40
    (tmp_path / "models").rename(tmp_path / "moved")
    assert "no model folder" in avse("search", index, "a red star").err
    assert avse("search", index, "a red star", "--model", tmp_path / "moved" / name).code == 0
    [facts] = avse("info", tmp_path / "moved" / name, "--json").json
    assert (facts["views V"], facts["image blocks P"], facts["text blocks Q"]) == (1, 1, 1)


def settings(folder, *more):
    values = {
        "init_from": folder,
        "model.block_width": 8,
        "train.epochs": 6,
        "train.batch_size": 5,
        "train.lr": 0.005,
        "train.encoder_lr": 0.002,
        "train.warmup_steps": 0,
        "train.temperature": 0.1,
        **dict(more),
    }
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.parametrize("name", ["clip", pytest.param("siglip", marks=pytest.mark.slow), "siglip2"])
def test_a_pair_is_fine_tuned(avse, pair_folders, colours, tmp_path, name):
    out = tmp_path / "run"
    said = avse("train", colours, "--config", name, "--out", out, *settings(pair_folders[name]))
    assert said.code == 0, said.err
    history = json.loads((out / "history.json").read_text())
    assert history[-1]["loss"] < 0.98 * history[0]["loss"]
    assert history[0]["decorrelation"] > 0
    run = json.loads((out / "run.json").read_text())
    start = build_model_of(pair_folders[name], name)
    assert run["identity"]["init_from"] == start.facts["init_from"]
    model = AVSE.from_pretrained(out / "model")
    assert model.facts["init_from"] == start.facts["init_from"] and model.facts["seed"] == 0
    assert model.num_image_blocks == 2 * model.num_text_blocks and model.fingerprint != start.fingerprint
    assert avse("evaluate", out / "model", colours, "--split", "val", "--bootstrap", 0).code == 0


def build_model_of(folder, name):
    from avse.config import load_recipe

    return build_model(load_recipe(name, [f"init_from={folder}", "model.block_width=8"]))


def test_a_run_of_another_start_is_not_resumed(avse, pair_folders, colours, tmp_path, monkeypatch):
    pair = tmp_path / "tiny-clip"
    shutil.copytree(pair_folders["clip"], pair)
    keep = Trainer._keep

    def stop(self, entry, rsum):
        keep(self, entry, rsum)
        if entry["epoch"] == 1:
            raise TrainingError("stopped here")

    monkeypatch.setattr(Trainer, "_keep", stop)
    command = ["train", colours, "--config", "clip", "--out", tmp_path / "run", *settings(pair)]
    assert avse(*command).code == 1
    monkeypatch.setattr(Trainer, "_keep", keep)
    weights = load_file(pair / "model.safetensors")  # of the head: the encoders are as they were
    changed = {**weights, "text_projection.weight": 0.5 * weights["text_projection.weight"]}
    save_file(changed, pair / "model.safetensors", metadata={"format": "pt"})
    said = avse(*command, "--resume")
    assert said.code == 1 and "was written with another init_from: 'tiny-clip@" in said.err
    save_file(weights, pair / "model.safetensors", metadata={"format": "pt"})
    assert avse(*command, "--resume").code == 0
    assert len(json.loads((tmp_path / "run" / "history.json").read_text())) == 6


def test_what_does_not_go_together_is_said(avse, pair_folders, scenes, tmp_path):
    command = ["train", scenes, "--config", "clip", "--out", tmp_path / "run"]
    said = avse(*command, *settings(pair_folders["clip"], ("model.image_encoder.sampling_stage", "output")))
    assert said.code == 1 and "CLIP pools its CLS token alone" in said.err
    said = avse(*command, *settings(pair_folders["clip"], ("train.word_augment", "true")))
    assert said.code == 1 and "set train.word_augment to false" in said.err
    said = avse(*command, *settings("org/no-such-pair"))
    assert said.code == 1 and "org/no-such-pair is no folder, and as a hub id it is not on this machine" in said.err
    said = avse(*command)
    assert said.code == 1 and "--set init_from=FOLDER" in said.err


def test_frozen_towers_are_read_once_and_their_heads_trained(avse, pair_folders, colours, tmp_path):
    frozen = [(f"model.{side}_encoder.frozen", "true") for side in ("image", "text")]
    more = settings(pair_folders["siglip"], *frozen, ("train.image_augment", "false"))
    command = ["train", colours, "--config", "siglip", "--out", tmp_path / "run", "--cache", tmp_path / "cache"]
    said = avse(*command, *more)
    assert said.code == 0, said.err
    assert any((tmp_path / "cache").iterdir())
    model, start = AVSE.from_pretrained(tmp_path / "run" / "model"), build_model_of(pair_folders["siglip"], "siglip")
    assert model.image_encoder.fingerprint() == start.image_encoder.fingerprint()
    assert not np.array_equal(model.encode_texts("red dog"), start.eval().encode_texts("red dog"))
