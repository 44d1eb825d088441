"""Image and text encoders: pixels and sentences to token features, from local folders and installed packages.

Knows how to choose an encoder by its configuration. Pooling, heads and training live elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from avse.config import ImageEncoderConfig, TextEncoderConfig
from avse.encoders import efficientnet
from avse.encoders.base import EncoderError, ImageEncoder, TextEncoder, TokenBatch
from avse.encoders.bigru import BiGRU
from avse.encoders.image import TransformerGrid
from avse.encoders.text import TransformerText

__all__ = ["EncoderError", "ImageEncoder", "TextEncoder", "TokenBatch", "build_image_encoder", "build_text_encoder"]


def build_image_encoder(config: ImageEncoderConfig) -> ImageEncoder:
    """Build an image encoder with its pretrained weights: `efficientnet-lite0`, or a local transformers folder.

    Raises:
        EncoderError: The source is not there or not complete, or cannot do what the configuration asks.
    """
    if config.source == efficientnet.NAME:
        return efficientnet.EfficientNetLite.build(config)
    return TransformerGrid.build(config)


def build_text_encoder(config: TextEncoderConfig, captions: Sequence[str] | None = None) -> TextEncoder:
    """Build a text encoder: `minilm`, `bigru`, or a local transformers folder.

    Args:
        config: What to build.
        captions: The training captions, whose words become the vocabulary of `bigru`; without them it knows the words
            of its vectors. Others have their own vocabulary.

    Raises:
        EncoderError: The source is not there or not complete, or cannot do what the configuration asks.
    """
    if config.source == "bigru":
        return BiGRU.build(config, captions)
    return TransformerText.build(config)
