"""ONNX: the graphs against float64, a folder read back by onnxruntime alone, what is refused, and what int8 loses."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from avse.checkpoint import CheckpointError
from avse.cli import main
from avse.config import ModelConfig, parse
from avse.export import onnx as export
from avse.export.graphs import ExportError, ImageGraph, TextGraph
from avse.files import find_damages, write_manifest
from avse.model import AVSE

TEXTS = ["a dog", "two red cats on a beach near a large tree", "a"]
BIGRU = {"source": "bigru", "vectors": None, "hidden": 12}


def make(image: dict, text: dict, **settings: object) -> AVSE:
    torch.manual_seed(0)
    values = {"num_views": 2, "embed_dim": 16, "block_width": 8, **settings}
    values |= {"image_encoder": image, "text_encoder": text}
    model = AVSE(parse(ModelConfig, values), captions=[*TEXTS]).eval()
    with torch.no_grad():  # away from the start, where norms are ones and zeros
        for name, value in model.named_parameters():
            if "_head." in name:
                value.add_(0.1 * torch.randn_like(value))
        for name, value in model.named_buffers():
            if name.endswith("running_var"):
                value.mul_(1.7)
            elif name.endswith("running_mean"):
                value.add_(0.2)
    return model


@pytest.fixture(scope="session")
def models(tiny_vit_folder, tiny_swin_folder, tiny_bert_folder, pair_folders, tmp_path_factory):
    """Build a small random model by the name of its family."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    vit, swin, bert = ({"source": str(folder)} for folder in (tiny_vit_folder, tiny_swin_folder, tiny_bert_folder))
    registers = tmp_path_factory.mktemp("registers")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**small, num_register_tokens=3)).save_pretrained(registers)
    regions = {"source": "regions", "width": 10, "num_regions": 9}
    build = {
        "vit, views at the input": lambda: make({**vit, "sampling_stage": "input"}, bert),
        "vit, views at the output": lambda: make(vit, bert),
        "vit at another size, mean": lambda: make({**vit, "resolution": 48}, bert, pooling="mean"),
        "vit, groups": lambda: make(vit, bert, sampling="groups"),
        "dinov2 with registers, bigru": lambda: make({"source": str(registers), "sampling_stage": "input"}, BIGRU),
        "swin, bigru": lambda: make(swin, BIGRU, num_views=3),
        "regions, one view": lambda: make(regions, BIGRU, num_views=1),
        "regions, groups": lambda: make(regions, BIGRU, num_views=3, sampling="groups"),
        "clip": lambda: AVSE.from_dual_encoder(pair_folders["clip"], 3, block_width=8),
        "siglip": lambda: AVSE.from_dual_encoder(pair_folders["siglip"], 2, block_width=8),
    }
    return lambda name: build[name]()


FAMILIES = [
    "vit, views at the input",
    "vit, views at the output",
    "vit at another size, mean",
    "vit, groups",
    "dinov2 with registers, bigru",
    "swin, bigru",
    "regions, one view",
    "regions, groups",
    "clip",
    "siglip",
]


def in_float64(model: AVSE, inputs: tuple[torch.Tensor, ...], texts: list[str]) -> tuple[np.ndarray, ...]:
    """Blocks of each input alone, and the scores by loops, by the model itself in float64."""
    wide = model.double()
    embed = wide.embed_features if wide.pixels is None else wide.embed_pixels
    with torch.inference_mode():
        rows = [
            embed(*(v[i : i + 1].double() if v.is_floating_point() else v[i : i + 1] for v in inputs))
            for i in range(len(inputs[0]))
        ]
        images, tokens = torch.cat(rows).numpy(), [wide.text_encoder.tokenize([text]) for text in texts]
        told = torch.cat([wide.embed_tokens(t.input_ids, t.attention_mask) for t in tokens]).numpy()
    scores = np.zeros((len(images), len(told)))
    for i, image in enumerate(images):
        for j, text in enumerate(told):
            scores[i, j] = sum(max(float(np.dot(v, t)) for v in image) for t in text)
    model.float()
    return images, told, scores


@pytest.mark.parametrize("name", FAMILIES)
def test_the_graphs_are_the_model(models, name):
    model = models(name)
    inputs = export.image_inputs(model, 4, torch.Generator().manual_seed(1))
    tokens = model.text_encoder.tokenize(TEXTS)
    bigru = name.endswith("bigru") or name.startswith("regions")
    with torch.inference_mode():
        images = ImageGraph(model)(*inputs).numpy()
        texts = None if bigru else TextGraph(model)(tokens.input_ids, tokens.attention_mask).numpy()
    wanted, told, _ = in_float64(model, inputs, TEXTS)
    assert images.shape == wanted.shape == (4, model.num_image_blocks, model.block_width)
    np.testing.assert_allclose(images, wanted, atol=2e-6)
    if not bigru:  # its GRU is a node of ONNX and does not run in torch
        np.testing.assert_allclose(texts, told, atol=2e-6)


def test_a_naflex_tower_is_refused(pair_folders, tmp_path):
    with pytest.raises(ExportError, match="tiny-siglip2' is a NaFlex tower"):
        export.export_onnx(AVSE.from_dual_encoder(pair_folders["siglip2"]), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_set_of_no_tokens_is_not_a_number(models):
    model = models("regions, one view")
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1] = False
    with torch.inference_mode():
        blocks = ImageGraph(model)(torch.randn(2, 9, 10), mask)
    assert blocks[0].isfinite().all() and blocks[1].isnan().all()


@pytest.fixture(scope="session")
def exported(models, tmp_path_factory):
    """The folder that the command writes for a ViT and BERT, with int8 texts; the model and what was printed."""
    root = tmp_path_factory.mktemp("onnx")
    model = models("vit, views at the input")
    model.save_pretrained(root / "model")
    assert main(["export", str(root / "model"), "--to", "onnx", "--out", str(root / "out"), "--int8"]) == 0
    return root / "out", model


def run(path: Path, **inputs: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path)).run(None, inputs)[0]


@pytest.mark.slow
def test_onnxruntime_scores_as_float64(exported):
    folder, model = exported
    inputs = export.image_inputs(model, 5, torch.Generator().manual_seed(2))
    _, _, wanted = in_float64(model, inputs, TEXTS)
    pixels = inputs[0].numpy()
    images = np.concatenate(
        [run(folder / "image.onnx", pixel_values=pixels[part]) for part in (slice(0, 1), slice(1, 5))]
    )
    for rows in ([0, 1, 2], [0], [1, 2]):  # several batches and lengths
        tokens = model.text_encoder.tokenize([TEXTS[row] for row in rows])
        ids, mask = tokens.input_ids.numpy(), tokens.attention_mask.numpy()
        texts = run(folder / "text.onnx", input_ids=ids, attention_mask=mask)
        scores = np.einsum("npc,mqc->nmpq", images, texts).max(axis=2).sum(axis=2)
        np.testing.assert_allclose(scores, wanted[:, rows], atol=1e-5)


@pytest.mark.slow
def test_the_folder_says_what_it_is_and_is_whole(exported, capsys):
    folder, model = exported
    facts = json.loads((folder / "export.json").read_text())
    assert facts["opset"] == onnx.load(folder / "image.onnx").opset_import[0].version == 18
    assert [facts[name] for name in ("image_blocks", "text_blocks", "block_width")] == [4, 2, 8]
    assert facts["fingerprint"] == model.fingerprint and facts["image"]["inputs"]["pixel_values"][1:] == [3, 32, 32]
    assert facts["differences"]["score"] <= 1e-5 and facts["int8"]["score"] > 0
    for name in ("image", "text"):
        graph = onnx.load(folder / f"{name}.onnx").graph
        dims = [[d.dim_param or d.dim_value for d in put.type.tensor_type.shape.dim] for put in graph.input]
        assert all(isinstance(size, str) for size in (dims[0][:1] if name == "image" else dims[0] + dims[1]))
        assert [put.name for put in graph.output] == ["blocks"]
    assert main(["verify", str(folder)]) == 0
    damaged = folder / "text.onnx"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        assert [Path(damage.file) for damage in find_damages(folder)] == [damaged]
        assert main(["verify", str(folder)]) == 1 and "text.onnx" in capsys.readouterr().out
    finally:
        damaged.write_bytes(whole)


@pytest.mark.slow
def test_int8_loses_what_it_says(exported):
    folder, model = exported
    images = run(
        folder / "image.onnx", pixel_values=export.image_inputs(model, 16, torch.Generator().manual_seed(0))[0].numpy()
    )
    tokens = model.text_encoder.tokenize(export.SENTENCES)
    values = {"input_ids": tokens.input_ids.numpy(), "attention_mask": tokens.attention_mask.numpy()}
    scores = [
        np.einsum("npc,mqc->nmpq", images, run(folder / file, **values)).max(axis=2).sum(axis=2)
        for file in ("text.onnx", "text.int8.onnx")
    ]
    said = json.loads((folder / "export.json").read_text())["int8"]["score"]
    assert said == pytest.approx(np.abs(scores[0] - scores[1]).max(), rel=1e-3)


@pytest.mark.slow
def test_the_snippet_of_the_docs_needs_neither_torch_nor_avse(exported, tmp_path):
    folder, model = exported
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text("utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "InferenceSession" in block)
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(noise).resize((300, 200)).save(tmp_path / "dog.jpg")
    code = code.replace('"demo-onnx"', repr(str(folder)))
    code += "\nimport sys; assert not {'torch', 'transformers', 'avse'} & set(sys.modules)\nprint(scores[0, 0])\n"
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    wanted = model.similarity(model.encode_images([tmp_path / "dog.jpg"]), model.encode_texts(["a dog on a beach"]))
    assert float(said.stdout.split()[-1]) == pytest.approx(float(wanted[0, 0]), abs=1e-5)


@pytest.mark.slow
def test_an_export_that_differs_is_refused(exported, tmp_path, monkeypatch):
    """Graphs of slightly other weights than the model's are found by the check, and nothing is written."""
    folder, _ = exported
    model = AVSE.from_pretrained(folder.parent / "model")
    with torch.no_grad():
        for value in model.text_head.parameters():
            value.add_(0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
    monkeypatch.setattr(export, "_write_graph", lambda _, file, place: shutil.copy(folder / file, place / file))
    model.train()
    with pytest.raises(ExportError, match=r"differ from torch by up to \d\.\de-0[1-4], more than 1e-05"):
        export.export_onnx(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [] and model.training


def test_only_an_export_is_replaced(models, tmp_path):
    model = models("regions, one view")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "export.json").write_text("mine")
    write_manifest(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="no config.json; .*it is an export: give the model it was made of"):
        AVSE.from_pretrained(tmp_path / "mine")
    model.save_pretrained(tmp_path / "model")
    model.folder = None
    for name in ("mine", "model"):
        with pytest.raises(FileExistsError, match="is there already and no export of kind onnx"):
            export.export_onnx(model, tmp_path / name, force=True)
    assert AVSE.from_pretrained(tmp_path / "model").fingerprint == model.fingerprint
    write_manifest(tmp_path / "mine", {"kind": "onnx"})
    with pytest.raises(FileExistsError, match="choose another name or --force"):
        export.export_onnx(model, tmp_path / "mine")


def test_a_text_side_through_onnxruntime(models, tmp_path):
    """One real graph in the quick tests: BiGRU's, whose GRU runs nowhere else."""
    model = models("regions, one view")
    export._write_graph(model, export.TEXT, tmp_path)
    export._write_tokenizer(model, tmp_path)
    read = export.text_reader(model, tmp_path)
    _, wanted, _ = in_float64(model, export.image_inputs(model, 1, torch.Generator().manual_seed(0)), TEXTS)
    for rows in ([0, 1, 2], [1], [2, 0]):  # several batches and lengths
        texts = run(tmp_path / "text.onnx", **read([TEXTS[row] for row in rows]))
        np.testing.assert_allclose(texts, wanted[rows], atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["swin, bigru", "clip", "siglip"])
def test_every_family_through_onnxruntime(models, name, tmp_path):
    model = models(name)
    facts = export.export_onnx(model, tmp_path / "out")
    inputs = export.image_inputs(model, 4, torch.Generator().manual_seed(3))
    _, _, wanted = in_float64(model, inputs, TEXTS)
    images = run(tmp_path / "out" / "image.onnx", **dict(zip(facts["image"]["inputs"], (v.numpy() for v in inputs))))
    read = export.text_reader(model, tmp_path / "out")
    texts = run(tmp_path / "out" / "text.onnx", **read(TEXTS))
    scores = np.einsum("npc,mqc->nmpq", images, texts).max(axis=2).sum(axis=2)
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


@pytest.mark.slow
def test_regions_through_onnxruntime(models, tmp_path):
    """The image side alone: the text side of this model is that of the quick test."""
    model = models("regions, groups")
    export._write_graph(model, export.IMAGE, tmp_path)
    inputs = export.image_inputs(model, 4, torch.Generator().manual_seed(3))
    wanted, _, _ = in_float64(model, inputs, TEXTS)
    for rows in (slice(0, 4), slice(1, 2)):
        values = dict(zip(("features", "mask"), (value[rows].numpy() for value in inputs)))
        np.testing.assert_allclose(run(tmp_path / "image.onnx", **values), wanted[rows], atol=2e-6)
