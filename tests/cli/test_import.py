"""`avse import` on a small checkpoint of the authors' layout, and the folder in the other verbs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from avse.model import AVSE


@pytest.fixture
def arguments(golden_checkpoint, golden_folders, tmp_path):
    vit, bert = golden_folders
    return ("import", golden_checkpoint, "--image-encoder", vit, "--text-encoder", bert, "--out", tmp_path / "model")


def test_the_folder_serves_evaluate_index_and_search(avse, arguments, tmp_path):
    said = avse(*arguments)
    model = tmp_path / "model"
    assert said.code == 0, said.err
    assert f"{model}: D = 128, V = 2, P,Q,C = 8,4,32, pictures at 64 px" in said.out
    assert "epoch 3" in said.out and "the file reports rSum 123.4 on test" in said.out
    assert "not used, 10 weights: " in said.out and "sim_enc.bin_score" in said.out
    assert "img_res 224" in said.err

    pictures = tmp_path / "set"
    pictures.mkdir()
    for i in range(4):
        Image.new("RGB", (40 + i, 30), (60 * i, 200 - 40 * i, 30)).save(pictures / f"{i}.png")
    lines = [{"image": f"{i}.png", "captions": [f"the man {i}", f"two dogs {i}"], "split": "test"} for i in range(4)]
    (pictures / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = avse("evaluate", model, pictures, "--bootstrap", 0, "--json")
    assert report.code == 0, report.err
    (figures,) = report.json
    assert 0 < figures["rsum"] <= 600 and figures["reported_rsum"] == 123.4
    assert avse("index", pictures, "--model", model, "--out", tmp_path / "pictures.avse").code == 0
    hits = avse("search", tmp_path / "pictures.avse", "two dogs", "-k", 4, "--json")
    assert hits.code == 0 and len(hits.json) == 4, hits.err

    loaded = AVSE.from_pretrained(model)
    expected = loaded.similarity(
        loaded.encode_images([pictures / f"{i}.png" for i in range(4)]), loaded.encode_texts(["two dogs"])
    )
    assert np.allclose(sorted(hit["score"] for hit in hits.json), np.sort(expected[:, 0]), atol=1e-3)


def test_json_block_width_and_force(avse, arguments, tmp_path):
    (found,) = avse(*arguments, "--json", "--block-width", 64).json
    assert found["shape"] == [4, 2, 64] and found["epoch"] == 3 and len(found["imported_sha256"]) == 64
    assert len(found["unused"]) == 10 and len(found["notes"]) == 2
    again = avse(*arguments)
    assert again.code == 1 and "exists; pass --force to replace it" in again.err
    assert avse(*arguments, "--force").code == 0
    assert AVSE.from_pretrained(tmp_path / "model").block_width == 32
    assert AVSE.from_pretrained(tmp_path / "model").facts["reported_rsum"] == 123.4


def test_failures_are_one_line(avse, arguments, tmp_path):
    torch.save({"state": {}}, tmp_path / "other.pth")
    said = avse("import", tmp_path / "other.pth", *arguments[2:])
    assert said.code == 1 and not said.out and len(said.lines) == 1
    assert "avse import: " in said.err and "the authors' checkpoint is a dict with 'model' and 'opt'" in said.err
    assert not (tmp_path / "model").exists()
    with pytest.raises(SystemExit) as stop:
        avse("import", tmp_path / "other.pth", "--out", tmp_path / "model")
    assert stop.value.code == 2
