"""`avse bench train`: the plain way is plain and right, and the rows say what they measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from avse.benchmarks import training
from avse.benchmarks.plain import encode_plainly, plain_pool, pooled_plainly, view_by_view
from avse.benchmarks.shapes import make_batch, make_captions, make_dataset, make_encoders, make_model
from avse.benchmarks.training import FIELDS, LEVERS, DisagreementError, Sizes, measure_training
from avse.features import resolve_precision
from avse.inputs import open_inputs
from avse.pooling import GPO

SMALL = Sizes(images=3, captions=3, batch=4, together=4, chunk=4, large=10, small=True)
HALF = resolve_precision("cpu", "auto") == "bf16"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    make_encoders(folder, small=True)
    return folder


@pytest.fixture
def here(monkeypatch):
    """Measure in this process, whose memory is not to be kept."""
    monkeypatch.setattr(training, "in_process", lambda threads, measure, *arguments: measure(*arguments))
    monkeypatch.setattr(training, "keep_freed_memory", lambda: True)


def test_captions_have_realistic_lengths(work):
    captions = make_captions(2000)
    assert captions == make_captions(2000)
    lengths = make_model(work).text_encoder.tokenize(captions).attention_mask.sum(dim=1)
    assert int(lengths.min()) == 8 and int(lengths.max()) == 30
    assert 12.5 < float(lengths.float().mean()) < 13.5, "every word is one token"


def test_the_plain_pooling_is_gpo():
    torch.manual_seed(0)
    pool, tokens = GPO(), torch.randn(5, 9, 6)
    mask = torch.arange(9) < torch.tensor([9, 3, 1, 4, 9])[:, None]
    for valid in (None, mask):
        torch.testing.assert_close(plain_pool(pool, tokens, valid), pool(tokens, valid), rtol=1e-5, atol=1e-6)


def test_the_plain_way_repeats_calls_and_undoes_itself(work, tmp_path):
    model = make_model(work)
    inputs = open_inputs(model, make_dataset(tmp_path, 3, 4))
    shapes, read = [], []
    model.image_encoder.model.embeddings.register_forward_hook(lambda m, i, out: shapes.append(len(out)))
    model.text_encoder.model.register_forward_hook(
        lambda m, i, kw, out: read.append(tuple(kw["input_ids"].shape)), with_kwargs=True
    )
    images, texts = encode_plainly(model, inputs, 5)
    assert shapes == [5, 5, 5, 5, 2, 2], "12 captions, 2 views: every picture four times a view"
    lengths = model.text_encoder.tokenize(inputs.dataset.captions).attention_mask.sum(dim=1).split(5)
    assert read == [(len(part), int(part.max())) for part in lengths]
    assert images.shape == (3, 4, 256) and texts.shape == (12, 2, 256)
    for row, path in enumerate(inputs.dataset.image_paths):
        np.testing.assert_allclose(images[row], model.encode_images(path), atol=1e-5)
    batch = make_batch(model, 4)
    with pooled_plainly(model):
        assert "forward" in vars(model.image_head.pool)
        plain = view_by_view(model, batch.images, batch.views)
    assert "forward" not in vars(model.image_head.pool) and "forward" not in vars(model.text_head.pool)
    torch.testing.assert_close(plain, model.embed_views(batch.images, None, batch.views), rtol=1e-5, atol=1e-5)


def test_small_parts(here):
    rows = list(measure_training(SMALL, runs=1, parts=("encode", "step", "memory")))
    assert all(row.keys() == FIELDS.keys() for row in rows)
    by = {measure: [row for row in rows if row["measure"] == measure] for measure in ("encode", "step", "memory")}
    half = ["bf16", "recompute"]
    assert [row["way"] for row in by["encode"]] == ["plain", "avse fp32", *["avse bf16"][: 1 * HALF]]
    assert [row["way"] for row in by["step"]] == [name for name in LEVERS if HALF or name not in half]
    assert [row["way"] for row in by["memory"]] == [
        "batch 4",
        "batch 4, gradient checkpointing",
        "batch 10 by chunks of 4",
    ]
    for row in by["encode"] + by["step"]:
        assert row["seconds"] > 0 and row["ratio"] > 0
        assert row["error"] < (0.05 if "bf16" in row["way"] or row["way"] in half else 1e-5), row["way"]
    assert by["step"][0]["gain"] is None and all(0 < row["share"] for row in by["step"])
    ratio = by["step"][1]["seconds"] / by["step"][2]["seconds"]
    assert by["step"][2]["gain"] == pytest.approx(ratio)
    wanted = [target["wanted"] for row in rows for target in row["targets"]]
    assert wanted == [
        "ratio >= 4.5",
        *["ratio >= 7"][: 1 * HALF],
        "ratio >= 1",
        *["ratio >= 1.6"][: 1 * HALF],
        "ratio <= 1.25",
    ]
    assert by["memory"][0]["ratio"] == 1 and by["memory"][0]["peak_mib"] > 50


@pytest.mark.parametrize("part", ["encode", "step"])
def test_other_numbers_than_the_plain_ones_are_an_error(here, monkeypatch, part):
    """Below nothing, for on some processors the ways agree to the bit."""
    monkeypatch.setattr(training, "TOLERANCE", -1.0)
    with pytest.raises(DisagreementError, match=f"{part}, .* from the plain way, at most -1 is allowed"):
        list(measure_training(SMALL, runs=1, parts=[part]))


def test_no_compiler_is_said(here, monkeypatch):
    monkeypatch.setenv("PATH", "")
    (row,) = measure_training(SMALL, runs=1, parts=["compile"])
    assert row["seconds"] is None and "no C++ compiler" in row["note"]


@pytest.mark.slow
def test_memory_and_compile_in_processes_of_their_own():
    rows = list(measure_training(SMALL, runs=1, parts=["compile", "memory"]))
    assert [row["measure"] for row in rows] == ["compile"] * 2 + ["memory"] * 3
    assert rows[0]["note"] is None and "longer: it compiles" in rows[1]["note"]
