"""Image and text encoders: pixels and sentences to token features, from local folders and installed packages.

Knows how to choose an encoder by its configuration. Pooling, heads and training live elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from avse.config import ImageEncoderConfig, TextEncoderConfig
from avse.encoders import efficientnet, regions
from avse.encoders.base import EncoderError, ImageEncoder, TextEncoder, TokenBatch
from avse.encoders.bigru import BiGRU
from avse.encoders.dual import build_pair, own_heads
from avse.encoders.image import TransformerGrid
from avse.encoders.regions import Regions
from avse.encoders.text import TransformerText

__all__ = [
    "EncoderError",
    "ImageEncoder",
    "TextEncoder",
    "TokenBatch",
    "build_image_encoder",
    "build_pair",
    "build_text_encoder",
    "own_heads",
]


def build_image_encoder(config: ImageEncoderConfig, allow_download: bool = False) -> ImageEncoder:
    """Build an image encoder with its pretrained weights: `efficientnet-lite0`, `regions`, or a transformers folder.

    Args:
        config: What to build; its source may be a hub id that is on this machine.
        allow_download: Fetch a hub id that is not.

    Raises:
        EncoderError: The source is not there or not complete, or cannot do what the configuration asks.
    """
    if config.source == efficientnet.NAME:
        return efficientnet.EfficientNetLite.build(config)
    if config.source == regions.NAME:
        return Regions(config)
    return TransformerGrid.build(config, allow_download)


def build_text_encoder(
    config: TextEncoderConfig, captions: Sequence[str] | None = None, allow_download: bool = False
) -> TextEncoder:
    """Build a text encoder: `minilm`, `bigru`, or a local transformers folder.

    Args:
        config: What to build; its source may be a hub id that is on this machine.
        captions: The training captions, whose words become the vocabulary of `bigru`; without them it knows the words
            of its vectors. Others have their own vocabulary.
        allow_download: Fetch a hub id that is not on this machine.

    Raises:
        EncoderError: The source is not there or not complete, or cannot do what the configuration asks.
    """
    if config.source == "bigru":
        return BiGRU.build(config, captions)
    return TransformerText.build(config, allow_download)
