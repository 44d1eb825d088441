"""`avse bench export` on a small model: every format gives the scores of torch, and the rows are whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from avse.cli import main
from avse.config import ModelConfig, parse
from avse.index import Index
from avse.model import AVSE


@pytest.mark.slow
def test_every_format_gives_the_same_scores(tiny_vit_folder, tiny_bert_folder, tmp_path, capsys):
    torch.manual_seed(0)
    sources = {"image_encoder": {"source": str(tiny_vit_folder)}, "text_encoder": {"source": str(tiny_bert_folder)}}
    model = AVSE(parse(ModelConfig, {"num_views": 2, "embed_dim": 16, "block_width": 8, **sources})).eval()
    model.save_pretrained(tmp_path / "model")
    random = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(12):
        noise = random.integers(0, 255, (4, 4, 3), np.uint8)
        Image.fromarray(noise).resize((40, 40)).save(tmp_path / "pictures" / f"{number}.png")
    with Index.create(tmp_path / "index", model=AVSE.from_pretrained(tmp_path / "model")) as index:
        index.add_images(tmp_path / "pictures", progress=False)
    (tmp_path / "asked.txt").write_text("a dog\ntwo red cats near a tree\n")
    command = ["bench", "export", str(tmp_path / "model"), "--index", str(tmp_path / "index"), "--runs", "1", "-k", "3"]
    assert main([*command, "--sentences", str(tmp_path / "asked.txt"), "--json"]) == 0
    rows = {row["format"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(rows) == [
        "torch",
        "onnx",
        "onnx, int8 texts",
        "sentence-transformers",
        "parquet, DuckDB",
        "qdrant, local mode",
    ]
    for name, row in rows.items():
        assert row["note"] is None and row["seconds"] > 0 and row["bytes"] > 0
        assert row["difference"] < (0.2 if "int8" in name else 1e-5)
    assert rows["onnx, int8 texts"]["difference"] > rows["onnx"]["difference"]
