"""Encoding for an evaluation: precision, reading ahead, the tick, the mode of the model."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from avse.data import load_dataset
from avse.data.scenes import make_scenes
from avse.evaluate import encode_inputs, evaluate, score
from avse.features import FeatureError, resolve_precision
from avse.inputs import Inputs, open_inputs
from avse.model import AVSE
from avse.texts import text_groups

HALF = resolve_precision("cpu", "auto") == "bf16"


@pytest.fixture(scope="module")
def opened(tiny_vit_folder, tiny_bert_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "s"
    make_scenes(folder, count=40, size=64, seed=0)
    torch.manual_seed(0)
    image = ImageEncoderConfig(source=str(tiny_vit_folder), sampling_stage="input", frozen=False)
    text = TextEncoderConfig(source=str(tiny_bert_folder), frozen=False)
    model = AVSE(ModelConfig(image_encoder=image, text_encoder=text, embed_dim=16, block_width=8))
    return model, open_inputs(model, load_dataset(folder, split="test"))


def test_every_picture_and_text_once_equal_to_one_by_one(opened):
    model, inputs = opened
    captions = inputs.dataset.captions
    twins = replace(inputs.dataset, captions=(*captions[:-1], captions[0].upper()))
    inputs, done = Inputs(twins, inputs.images, inputs.texts), []
    images, texts = encode_inputs(model, inputs, 3, tick=done.append)
    assert sum(done) == len(images) + len(texts) and max(done) == 3
    groups = text_groups(inputs.dataset.captions)
    assert len(texts) == groups.max() + 1 < len(groups)
    for row, path in enumerate(inputs.dataset.image_paths):
        np.testing.assert_allclose(images[row], model.encode_images(path), atol=1e-6)
    for row, caption in enumerate(inputs.dataset.captions):
        np.testing.assert_allclose(texts[groups[row]], model.encode_texts(caption), atol=1e-6)


@pytest.mark.skipif(not HALF, reason="this processor has no fast bf16")
def test_bf16_is_near_and_said(opened):
    model, inputs = opened
    plain, half = encode_inputs(model, inputs), encode_inputs(model, inputs, precision="bf16")
    for one, other in zip(plain, half):
        assert other.dtype == np.float32 and 0 < np.abs(one - other).max() < 0.05
    facts = evaluate(model, inputs.dataset, inputs=inputs, bootstrap=0, precision="auto").to_dict()
    assert "bf16" in str(facts) and "bf16" not in str(score([(model, inputs, {})]).meta)


def test_bf16_where_it_is_slow_is_refused(opened, monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    model, inputs = opened
    with pytest.raises(FeatureError, match="bf16"):
        encode_inputs(model, inputs, precision="bf16")
    exact = encode_inputs(model, inputs, precision="auto")
    assert all(map(np.array_equal, exact, encode_inputs(model, inputs)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("after", [1, 20])
def test_what_the_tick_raises_passes_and_leaves_the_mode_and_no_thread(opened, training, after):
    model, inputs = opened
    model.train(training)
    before, seen = threading.active_count(), []

    def stop(count):
        seen.append(count)
        if sum(seen) >= after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, inputs.dataset, inputs=inputs, batch_size=2, tick=stop)
    assert model.training is training and model.text_head.training is training
    assert threading.active_count() == before and not torch.is_inference_mode_enabled()
    model.eval()


def test_the_next_pictures_are_read_while_the_encoder_works(opened):
    model, inputs = opened
    second, reads, waited = threading.Event(), [], []

    class Counted:
        precision, kept, skipped, content = "fp32", inputs.images.kept, (), ""

        def batch(self, rows, seeds=None):
            reads.append(rows)
            if len(reads) == 2:
                second.set()
            return inputs.images.batch(rows)

    def hook(module, arguments):
        waited.append(second.wait(timeout=10))  # the first pictures are in the head, the second are being read

    handle = model.image_head.register_forward_pre_hook(hook)
    try:
        encode_inputs(model, Inputs(inputs.dataset, Counted(), inputs.texts), 2)
    finally:
        handle.remove()
    assert waited[0] and len(waited) == len(reads) == -(-inputs.dataset.num_images // 2)
