"""Features of regions made beforehand (BUTD, VinVL) in the place of an image encoder: G of them an image, no grid.

Knows their number and width alone. What can be trained on them are the heads; detectors and their files live elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from avse.config import ImageEncoderConfig
from avse.encoders.base import EncoderError, ImageEncoder
from avse.images import ImageSource, PixelSpec

NAME = "regions"
_NO_PIXELS = PixelSpec((0, 0), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Regions(ImageEncoder, kind=NAME):
    """Features (B, G, W) in, the same features out; the grid is (1, G), without a prefix. Pixels are refused."""

    def __init__(self, settings: ImageEncoderConfig) -> None:
        """Take number and width from the settings; EncoderError where the width is not given."""
        if settings.width is None:
            raise EncoderError(
                "image encoder 'regions': model.image_encoder.width is not set; give the width of the features, "
                "2048 for BUTD or 2054 for VinVL"
            )
        why = "features made beforehand have no blocks before them"
        super().__init__(settings, _NO_PIXELS, grid=(1, settings.num_regions), num_prefix=0, no_input=why)
        self.width = settings.width
        self._settle()

    @classmethod
    def _rebuild(cls, folder: Path, data: dict[str, Any]) -> Regions:
        return cls(ImageEncoderConfig(**data["settings"]))

    def describe(self) -> dict[str, Any]:
        """Return kind, number and width of the features."""
        return {"kind": self.kind, "num_regions": self.grid[1], "width": self.width}

    def load_pixels(self, source: ImageSource) -> Any:
        """Raise EncoderError: a picture cannot become regions here."""
        raise self._no_pictures()

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return features (B, G, W) as they are; EncoderError for pixels or another width."""
        if pixel_values.ndim == 4:
            raise self._no_pictures()
        if pixel_values.ndim != 3 or pixel_values.shape[2] != self.width:
            raise EncoderError(f"features {tuple(pixel_values.shape)}: expected (B, {self.grid[1]}, {self.width})")
        return pixel_values

    def _no_pictures(self) -> EncoderError:
        return EncoderError(
            f"this model reads {self.grid[1]} features of width {self.width} an image, made beforehand, and no "
            "pictures: give it a data set with SPLIT_ims.npy (load_dataset), or features to embed_features"
        )
