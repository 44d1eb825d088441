"""Regions made beforehand: the encoder, the inputs read from their file, and training on them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avse import AVSE, Trainer, evaluate
from avse.config import ImageEncoderConfig, ModelConfig, TrainConfig, parse
from avse.data import PairDataset
from avse.data.dataset import FeatureRows
from avse.encoders import EncoderError, ImageEncoder, build_image_encoder
from avse.inputs import RegionInputs, can_cache, open_inputs
from avse.trainer.feed import draw_views

COLOURS = ("red", "green", "blue", "yellow")


def region_set(folder: Path, split: str = "train", images: int = 24, regions: int = 6, width: int = 10) -> PairDataset:
    """Images whose regions speak of a colour, two captions each; the rows lie in the file backwards."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(len(split))
    kinds = np.arange(images) % 4
    values = random.normal(0, 0.3, (images, regions, width)).astype(np.float32)
    values[np.arange(images), :, kinds] += 2
    path = folder / f"{split}_ims.npy"
    np.save(path, values[::-1])
    captions = [f"{('a', 'the')[i % 2]} {COLOURS[kinds[i // 2]]} dog {i}" for i in range(2 * images)]
    return PairDataset(
        "regions", split, folder, tuple(f"row-{i}" for i in range(images)), (path,) * images, tuple(captions),
        np.arange(2 * images) // 2, (), ({},) * images, features=FeatureRows(path, np.arange(images)[::-1].copy()),
    )  # fmt: skip


def region_model(width: int = 10, regions: int = 6, **settings: object) -> AVSE:
    torch.manual_seed(0)
    values = {
        "image_encoder": {"source": "regions", "width": width, "num_regions": regions},
        "text_encoder": {"source": "bigru", "vectors": None, "hidden": 16},
        "num_views": 3, "embed_dim": 16, "block_width": 8, "sampling": "groups", **settings,
    }  # fmt: skip
    return AVSE(parse(ModelConfig, values), captions=["a red green blue yellow dog the"])


@pytest.mark.parametrize("width", [2048, 2054])
def test_features_go_through_as_they_are(width, tmp_path):
    encoder = build_image_encoder(ImageEncoderConfig(source="regions", width=width))
    assert (encoder.grid, encoder.num_prefix, encoder.width) == ((1, 36), 0, width)
    assert not list(encoder.parameters()) and encoder.stages == {"output"}
    features = torch.randn(2, 36, width)
    assert encoder(features) is features
    encoder.save(tmp_path)
    rebuilt = ImageEncoder.from_saved(tmp_path)
    assert (rebuilt.grid, rebuilt.width, rebuilt.fingerprint()) == (encoder.grid, width, encoder.fingerprint())


def test_what_is_no_feature_is_refused(tmp_path):
    with pytest.raises(EncoderError, match="width is not set.*2048 for BUTD or 2054 for VinVL"):
        build_image_encoder(ImageEncoderConfig(source="regions"))
    with pytest.raises(EncoderError, match="no blocks before them; use 'output'"):
        build_image_encoder(ImageEncoderConfig(source="regions", width=4, sampling_stage="input"))
    model = region_model()
    with pytest.raises(ValueError, match=r"\(2, 6, 11\).*\(B, G, 10\)"):
        model.embed_features(torch.zeros(2, 6, 11))
    with pytest.raises(ValueError, match="features have 5 tokens"):
        model.embed_features(torch.zeros(2, 5, 10))
    for picture in (np.zeros((40, 40, 3), np.uint8), tmp_path / "a.jpg"):
        with pytest.raises(EncoderError, match="reads 6 features of width 10 an image.*SPLIT_ims.npy"):
            model.encode_images(picture)
    with pytest.raises(EncoderError, match="no pictures"):
        model.embed_pixels(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_rows_are_read_from_the_file(tmp_path, dtype):
    data = region_set(tmp_path)
    values = np.load(data.features.path).astype(dtype)
    np.save(data.features.path, values)
    inputs = open_inputs(region_model(), data, cache=tmp_path / "cache")  # a cache has nothing to keep
    assert isinstance(inputs.images, RegionInputs) and not (tmp_path / "cache").exists() and not inputs.skipped
    batch = inputs.images.batch([3, 0, 3])
    assert batch.dtype == torch.float32
    np.testing.assert_array_equal(batch.numpy(), values[[20, 23, 20]].astype(np.float32))
    part = open_inputs(region_model(), data.subset([5, 2]))
    np.testing.assert_array_equal(part.images.batch([1, 0]).numpy(), values[[21, 18]].astype(np.float32))
    assert isinstance(inputs.images.values, np.memmap) and not can_cache(region_model())


def test_the_hash_is_of_file_rows_and_content(tmp_path):
    def content(data: PairDataset) -> str:
        return open_inputs(region_model(), data).images.content

    data = region_set(tmp_path / "a")
    same = region_set(tmp_path / "b")
    assert content(data) == content(same) != content(data.subset(range(23)))
    values = np.load(same.features.path)
    values[4, 2, 1] += 1
    np.save(same.features.path, values)
    assert content(data) != content(same)


def test_broken_files_are_clear_errors(tmp_path):
    data = region_set(tmp_path)
    with pytest.raises(ValueError, match="6 features of width 10.*reads 6 of width 11: set.*width=10"):
        open_inputs(region_model(width=11), data)
    with pytest.raises(ValueError, match="6 features of width 10.*reads 5 of width 10: set.*num_regions=6"):
        open_inputs(region_model(regions=5), data)
    values = np.load(data.features.path)
    values[7, 1, 3] = np.nan
    np.save(data.features.path, values)
    with pytest.raises(ValueError, match=r"row 7 \(image 'row-16'\): not all features are finite"):
        open_inputs(region_model(), data)
    np.save(data.features.path, values[:20])
    with pytest.raises(ValueError, match="has 20 rows; the data set asks for row 23"):
        open_inputs(region_model(), data)


def test_a_number_that_is_not_finite_is_found_when_it_is_read(tmp_path):
    data = region_set(tmp_path, images=200)
    values = np.load(data.features.path)
    values[198, 0, 0] = np.inf  # image row-1, between the sampled rows
    np.save(data.features.path, values)
    inputs = open_inputs(region_model(), data)
    with pytest.raises(ValueError, match=r"row 198 \(image 'row-1'\)"):
        inputs.images.batch([0, 1, 2])


def test_pictures_and_regions_are_not_exchanged(tmp_path, tiny_vit_folder):
    data = region_set(tmp_path / "regions")
    reader = AVSE(
        parse(ModelConfig, {
            "image_encoder": {"source": str(tiny_vit_folder)},
            "text_encoder": {"source": "bigru", "vectors": None, "hidden": 8}, "embed_dim": 8, "block_width": 8,
        }), captions=["a dog"],
    )  # fmt: skip
    with pytest.raises(ValueError, match="features made beforehand.*reads pictures: set model.image_encoder.source"):
        open_inputs(reader, data)
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    pictures = PairDataset(
        "own", "val", tmp_path, ("a.png",), (tmp_path / "a.png",), ("a dog",), np.zeros(1, np.int64), (), ({},)
    )
    with pytest.raises(ValueError, match="holds pictures, and the model reads 6 features of width 10"):
        open_inputs(region_model(), pictures)
    trainer = Trainer(region_model(), TrainConfig(image_augment=True), progress=False)
    with pytest.raises(ValueError, match="set train.image_augment=false"):
        trainer.fit(data, data)


@pytest.mark.parametrize("augment", [pytest.param(0.0, marks=pytest.mark.slow), 0.4])
def test_training_on_regions_learns_resumes_and_saves(tmp_path, augment):
    train, val = region_set(tmp_path), region_set(tmp_path, "val", images=8)
    config = TrainConfig(epochs=6, batch_size=12, lr=1e-2, size_augment=augment, decorrelation_weight=0.1)
    result = Trainer(region_model(), config, progress=False).fit(train, val, out=tmp_path / "run")
    matching = [entry["matching"] for entry in result.history]
    assert matching[-1] < 0.8 * matching[0]
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert 0.5 < run["views_overlap"] <= 1 and run["views"] == 3
    model = AVSE.from_pretrained(tmp_path / "run" / "model")
    report = evaluate(model, val, bootstrap=0)
    assert report.rsum == pytest.approx(result.best_rsum)
    assert report.meta["regions"] == 6 and "resolution" not in report.meta
    assert report.meta["precision"] == "features float32"
    once = model.embed_features(torch.from_numpy(np.load(val.features.path)))
    torch.testing.assert_close(once, model.embed_features(torch.from_numpy(np.load(val.features.path))))
    shorter = Trainer(region_model(), config, progress=False)
    stop = iter(range(3))

    def until_the_third(entry: dict) -> None:
        if next(stop) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shorter.fit(train, val, out=tmp_path / "stopped", on_epoch=until_the_third)
    again = Trainer(region_model(), config, progress=False).fit(train, val, out=tmp_path / "stopped", resume=True)
    assert again.history == result.history


def test_size_augment_leaves_regions_out_before_the_groups_choose(tmp_path):
    model = region_model()
    shares = set()
    for seed in range(20):
        views, seen = draw_views(model, 0.5, 5, torch.Generator().manual_seed(seed))
        assert views is None and seen.shape == (5, 6)
        [count] = set(seen.sum(1).tolist())
        shares.add(count)
    assert shares == {4, 5, 6}
    assert draw_views(model, 0.0, 5, torch.Generator()) == (None, None)
