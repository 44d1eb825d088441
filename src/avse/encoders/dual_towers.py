"""The two towers of a pair as encoders, and its own heads: CLS or attention pooling, the token at a text's end.

Knows how CLIP and SigLIP pool, project and pad; not where their weights come from.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avse.config import ImageEncoderConfig, TextEncoderConfig
from avse.encoders.base import EncoderError, TokenBatch, random_transformer, saved_pixels, transformer_config
from avse.encoders.image import TransformerGrid
from avse.encoders.text import TransformerText, load_tokenizer
from avse.images import PixelSpec

_TEXT_MODELS = {
    "clip_text_model": "CLIPTextModel",
    "siglip_text_model": "SiglipTextModel",
    "siglip2_text_model": "Siglip2TextModel",
}


class OwnImageHead(nn.Module):
    """A pair's own way from tokens to one vector: CLS, norm and projection (CLIP), or attention pooling (SigLIP)."""

    def __init__(self, pool: nn.Module, project: nn.Module | None) -> None:
        super().__init__()
        self.pool, self.project = pool, project

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool tokens (B, K, W), CLS first where there is one -> (B, D); ValueError for a mask that hides any."""
        if mask is not None and not bool(mask.all()):
            raise ValueError("the own pooling of a pair sees every token: leave the mask of image features out")
        if self.project is None:
            pooled: Tensor = self.pool(tokens)
            return pooled
        projected: Tensor = self.project(self.pool(tokens[:, 0]))
        return projected

    def forward_views(
        self, tokens: Tensor, views: Tensor, mask: Tensor | None = None, factors: Tensor | None = None
    ) -> Tensor:
        """Pool several views (B, V, K) of tokens (B, G, W) -> (B, V, D); `factors` are never given."""
        rows = torch.arange(len(tokens), device=tokens.device)[:, None, None]
        return self(tokens[rows, views].flatten(0, 1), mask).reshape(*views.shape[:2], -1)


class OwnTextHead(nn.Module):
    """A pair's own way from tokens to one vector: one token, projected."""

    def __init__(self, project: nn.Module, last: bool) -> None:
        super().__init__()
        self.project, self.last = project, last

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Project one token of (B, L, W) -> (B, D): the last of all, or the last one under the mask (B, L)."""
        projected: Tensor = self.project(tokens[_place(mask, self.last)])
        return projected


def _place(mask: Tensor, last: bool) -> tuple[Tensor, Tensor]:
    """Return rows and positions of the tokens that are pooled."""
    length = mask.shape[1]
    ends = torch.full((len(mask),), length - 1, device=mask.device)
    if not last:
        ends = ends - mask.bool().flip(1).int().argmax(1)
    return torch.arange(len(mask), device=mask.device), ends


class DualImage(TransformerGrid, kind="dual-image"):
    """The vision tower of a pair: a grid encoder whose pooling is kept for `own_head`."""

    def __init__(
        self, settings: ImageEncoderConfig, model: Any, pixels: PixelSpec, dim: int, project: Any = None
    ) -> None:
        """Take a loaded (or random) tower, D of the pair and CLIP's projection (None: a random one)."""
        pool, width = getattr(model, "head", None), int(model.config.hidden_size)
        if model.config.model_type == "clip_vision_model":
            pool, project = copy.deepcopy(model.post_layernorm), project or nn.Linear(width, dim, bias=False)
        elif pool is None:
            raise EncoderError(f"{settings.source}: its vision model has no pooling head (vision_use_head is false)")
        super().__init__(settings, model, replace(pixels, reduced=False))  # as the pair's own processor does
        self.dim, self._head = dim, [OwnImageHead(pool, project)]  # in a list: the model's, not the encoder's weights

    @classmethod
    def _rebuild(cls, folder: Path, data: dict[str, Any]) -> DualImage:
        return cls(ImageEncoderConfig(**data["settings"]), random_transformer(folder), saved_pixels(data), data["dim"])

    def own_head(self) -> OwnImageHead:
        """Return a copy of the pair's own head."""
        return copy.deepcopy(self._head[0])

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "dim": self.dim}


class DualText(TransformerText, kind="dual-text"):
    """The text tower of a pair with its padding rule: SigLIP's texts are padded to max_length, and padding is seen."""

    def __init__(self, settings: TextEncoderConfig, model: Any, tokenizer: Any, dim: int, project: Any = None) -> None:
        """Take a loaded (or random) tower, D of the pair and CLIP's projection (None: a random one)."""
        width, end = int(model.config.hidden_size), model.config.eos_token_id
        self.last = model.config.model_type != "clip_text_model"
        if self.last:
            project, model.head = model.head, nn.Identity()
        elif end not in (2, tokenizer.eos_token_id):
            raise EncoderError(
                f"{settings.source}: its model looks for the token {end} at a text's end, its tokenizer writes "
                f"{tokenizer.eos_token_id} ({tokenizer.eos_token!r:.80}): take the model's own tokenizer"
            )
        super().__init__(settings, model, tokenizer)
        self.padding = "max_length" if self.last else True
        self.sees_padding = self.last and "attention_mask" not in tokenizer.model_input_names
        self.can_augment = False
        self.dim, self._head = dim, [OwnTextHead(project or nn.Linear(width, dim, bias=False), self.last)]

    @classmethod
    def _rebuild(cls, folder: Path, data: dict[str, Any]) -> DualText:
        import transformers

        config = transformer_config(folder)
        model = getattr(transformers, _TEXT_MODELS[config.model_type])(config)  # AutoModel knows CLIP's alone
        return cls(TextEncoderConfig(**data["settings"]), model, load_tokenizer(folder), data["dim"])

    def own_head(self) -> OwnTextHead:
        """Return a copy of the pair's own head."""
        return copy.deepcopy(self._head[0])

    def describe(self) -> dict[str, Any]:
        """Return what TransformerText does, and the padding rule."""
        rule = {"padding": self.padding, "side": self.tokenizer.padding_side, "sees_padding": self.sees_padding}
        return {**super().describe(), **rule, **self._facts()}

    def tokenize(self, texts: Any) -> TokenBatch:
        """Turn sentences into ids (B, L): L is max_length for SigLIP, whose padding counts as tokens.

        CLIP's mask ends with the token that is pooled, the first end-of-text.
        """
        batch = super().tokenize(texts)
        ids, mask = batch.input_ids, batch.attention_mask
        if self.sees_padding:
            mask = torch.ones_like(mask)
        elif not self.last:
            end = self.model.config.eos_token_id
            ends = ids.argmax(1) if end == 2 else (ids == end).int().argmax(1)  # 2: a mistake of old configurations
            mask = (torch.arange(ids.shape[1]) <= ends[:, None]).long()
        return TokenBatch(ids, mask, batch.truncated)

    def kept(self, attention_mask: Tensor) -> Tensor:
        """Return the one token (B, L) of each text that is pooled."""
        kept = torch.zeros(attention_mask.shape, dtype=torch.bool, device=attention_mask.device)
        kept[_place(attention_mask, self.last)] = True
        return kept

    def _facts(self) -> dict[str, Any]:
        return {**super()._facts(), "dim": self.dim}
