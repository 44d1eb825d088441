"""The folder for sentence-transformers: MultiVectorEncoder loads it, and its similarity is AEOM."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avse import files
from avse.cli import main
from avse.config import ModelConfig, parse
from avse.export.graphs import ExportError
from avse.export.multivector import export_sentence_transformers
from avse.model import AVSE

TEXTS = ["a dog", "two red cats on a beach near a large tree", ""]


@pytest.fixture(scope="module")
def model(tiny_vit_folder, tiny_bert_folder) -> AVSE:
    torch.manual_seed(0)
    sources = {"image_encoder": {"source": str(tiny_vit_folder)}, "text_encoder": {"source": str(tiny_bert_folder)}}
    return AVSE(parse(ModelConfig, {"num_views": 2, "embed_dim": 16, "block_width": 8, **sources})).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("sentence")
    model.save_pretrained(root / "model")
    command = ["export", str(root / "model"), "--to", "sentence-transformers", "--out", str(root / "out")]
    assert main(command) == 0 and main(command) == 1 and main([*command, "--force"]) == 0
    return root / "out"


def load(folder, trust_remote_code=True):
    from sentence_transformers import MultiVectorEncoder

    return MultiVectorEncoder(str(folder), trust_remote_code=trust_remote_code, device="cpu")


@pytest.fixture(scope="module")
def encoder(folder):
    return load(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    random, place = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for number, size in enumerate([(40, 50), (64, 33), (20, 90)]):
        Image.fromarray(random.integers(0, 255, (*size, 3), np.uint8)).save(place / f"{number}.png")
    return sorted(place.iterdir())


def test_similarity_is_aeom(model, encoder, pictures):
    queries, documents = encoder.encode_query(TEXTS), encoder.encode_document([str(path) for path in pictures])
    assert [blocks.shape for blocks in queries] == [(2, 8)] * 3 and documents[0].shape == (4, 8)
    scores = encoder.similarity(queries, documents).numpy()
    images, texts = model.encode_images(pictures).astype(float), model.encode_texts(TEXTS).astype(float)
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            wanted = sum(max(float(np.dot(v, t)) for v in image) for t in text)
            assert scores[j, i] == pytest.approx(wanted, abs=1e-5)


def test_pictures_come_as_paths_pillow_images_arrays_and_dicts(encoder, pictures):
    wanted = encoder.encode_document([str(pictures[0])])[0]
    image = Image.open(pictures[0])
    for one in (pictures[0], image, np.asarray(image), {"image": str(pictures[0])}):
        assert torch.equal(encoder.encode_document([one])[0], wanted)
    assert torch.equal(encoder.encode_query({"text": "a dog"}), encoder.encode_query("a dog"))
    assert encoder.max_seq_length == 64 and encoder.get_embedding_dimension() == 8


def test_saved_again_it_is_the_same(encoder, tmp_path):
    encoder.save_pretrained(str(tmp_path / "again"), create_model_card=False)
    again = load(tmp_path / "again")
    for one, other in zip(again.encode_query(TEXTS), encoder.encode_query(TEXTS)):
        assert torch.equal(one, other)


def test_what_would_be_wrong_is_refused(encoder, folder, pictures):
    with pytest.raises(ValueError, match="sentences are the queries of this model"):
        encoder.encode_document(TEXTS)
    with pytest.raises(ValueError, match="multiple modalities|one call takes"):
        encoder.encode_query(["a dog", str(pictures[0])])
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(folder, trust_remote_code=False)
    regions = {"image_encoder": {"source": "regions", "width": 4}, "num_views": 1, "embed_dim": 8, "block_width": 8}
    text = {"text_encoder": {"source": "bigru", "vectors": None, "hidden": 8}}
    with pytest.raises(ExportError, match="reads features made beforehand"):
        export_sentence_transformers(AVSE(parse(ModelConfig, regions | text), captions=["a"]), folder.parent / "other")


def test_the_callers_model_stays_as_it_was(folder, monkeypatch, tmp_path, caplog, capfd):
    model = AVSE.from_pretrained(folder.parent / "model").train()
    with caplog.at_level("INFO"):
        export_sentence_transformers(model, tmp_path / "out")
    assert model.training and model.folder == folder.parent / "model"
    assert "Saving model" not in caplog.text + "".join(capfd.readouterr())
    plain, written = files.write_manifest, []

    def full(place, extra):  # the disk, once the model's own folder lies in the other
        written.append(place)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        plain(place, extra)

    monkeypatch.setattr(files, "write_manifest", full)
    with pytest.raises(OSError, match="No space left"):
        export_sentence_transformers(model, tmp_path / "other")
    assert model.training and model.folder == folder.parent / "model" and not (tmp_path / "other").exists()


def test_verify_finds_a_flipped_byte(folder, capsys):
    assert main(["verify", str(folder)]) == 0
    path = folder / "modules.json"
    assert json.loads(path.read_text())[0]["type"] == "avse.export.multivector.AVSEModule"
    whole = path.read_text()
    path.write_text(whole.replace("avse", "evse"))
    try:
        assert main(["verify", str(folder)]) == 1 and "modules.json" in capsys.readouterr().out
    finally:
        path.write_text(whole)
