"""Grid encoders of transformers from a local folder: ViT, DINOv2 (registers too), SigLIP, SigLIP 2, CLIP vision, Swin.

Knows the few architectures of `_FAMILIES` and how to leave cells out before their blocks. Image processors of
transformers are not used (they want torchvision): size, mean and std are read from preprocessor_config.json.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avse.config import ImageEncoderConfig
from avse.encoders.base import (
    EncoderError,
    ImageEncoder,
    load_transformer,
    plain_config,
    random_transformer,
    read_object,
    saved_pixels,
    transformer_config,
)
from avse.encoders.hub import local_folder
from avse.images import PixelSpec
from avse.precision import exact_float32

_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's


class _Family(NamedTuple):
    """An architecture: its last LayerNorm, CLS or not, the norm before the blocks, and three habits.

    ``interpolate``: position codes are fitted to the resolution on request only. ``stack``: blocks over all tokens.
    ``patches``: it takes flattened patches and the shape of their grid (SigLIP 2's NaFlex) in place of pixels.
    """

    norm: str
    class_token: int = 1
    pre_norm: str = ""
    interpolate: bool = True
    stack: bool = True
    patches: bool = False


_FAMILIES = {
    "vit": _Family("layernorm"),
    "dinov2": _Family("layernorm", interpolate=False),
    "dinov2_with_registers": _Family("layernorm", interpolate=False),
    "siglip_vision_model": _Family("post_layernorm", class_token=0),
    "siglip2_vision_model": _Family("post_layernorm", class_token=0, patches=True),
    "clip_vision_model": _Family("post_layernorm", pre_norm="pre_layrnorm"),
    "swin": _Family("layernorm", class_token=0, stack=False),
}
_DUAL = ("siglip", "siglip2", "clip")
_UNUSED = ("pooler", "head")


class TransformerGrid(ImageEncoder, kind="transformers-image"):
    """A vision model of transformers as a grid encoder; `model` is the tower without its pooling head."""

    def __init__(self, settings: ImageEncoderConfig, model: Any, pixels: PixelSpec) -> None:
        """Take a loaded (or random) vision tower."""
        config = model.config
        family = _FAMILIES[config.model_type]
        prefix = family.class_token + int(getattr(config, "num_register_tokens", 0))
        why = "" if family.stack else "its windows need the whole picture"
        super().__init__(settings, pixels, grid=_grid(config, pixels.size), num_prefix=prefix, no_input=why)
        for name in _UNUSED:
            if getattr(model, name, None) is not None:
                setattr(model, name, None)
        self.model, self._family, self.width = model, family, int(config.hidden_size)
        self._settle(unused=("mask_token",) if settings.final_norm else ("mask_token", family.norm))

    @classmethod
    def build(cls, settings: ImageEncoderConfig, allow_download: bool = False) -> TransformerGrid:
        """Load the folder (or, of a hub id, its copy) ``settings.source``.

        Raises:
            EncoderError: No local folder, an unknown architecture, missing weights, a resolution that does not fit.
        """
        folder = local_folder(settings.source, allow_download)
        config = transformer_config(folder)
        dual = config.model_type in _DUAL
        vision = config.vision_config if dual else config
        if vision.model_type not in _FAMILIES:
            known = ", ".join([*_FAMILIES, *_DUAL])
            raise EncoderError(f"{folder}: model_type {config.model_type!r} is no known grid encoder; known: {known}")
        pixels = _pixel_spec(folder, vision, settings)
        model = load_transformer(folder, part="vision_model." if dual else "", unused=_UNUSED)
        return cls(settings, model.vision_model if dual else model, pixels)

    @classmethod
    def _rebuild(cls, folder: Path, data: dict[str, Any]) -> TransformerGrid:
        return cls(ImageEncoderConfig(**data["settings"]), random_transformer(folder), saved_pixels(data))

    def save(self, folder: str | Path) -> None:
        """Write encoder.json and transformers' config.json."""
        super().save(folder)
        self.model.config.save_pretrained(folder)

    def describe(self) -> dict[str, Any]:
        """Return kind, pixel recipe, choice of tokens and architecture."""
        facts = {**self._facts(), "final_norm": self.settings.final_norm}
        return {"kind": self.kind, **facts, "architecture": plain_config(self.model.config)}

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) into tokens (B, num_prefix + G, W), prefix first."""
        self._check_pixels(pixel_values)
        if self._family.stack:
            return self.run_blocks(self.embed_cells(pixel_values))
        embedded, dimensions = self.model.embeddings(pixel_values, interpolate_pos_encoding=True)
        return self._last(self.model.encoder(embedded, dimensions).last_hidden_state)

    @exact_float32()
    def forward_views(self, pixel_values: Tensor, patch_indices: Tensor) -> Tensor:
        """Encode (B, V, K) kept cells into (B, V, num_prefix + K, W): all B·V sequences in one pass of the blocks.

        Cells are left out after patch and position embedding (method.md §1). Errors as in `ImageEncoder`.
        """
        if not self._family.stack:
            raise self._refusal()
        self._check_pixels(pixel_values)
        batch, cells = len(pixel_values), self.grid[0] * self.grid[1]
        if patch_indices.ndim != 3 or len(patch_indices) != batch or not patch_indices.numel():
            raise EncoderError(f"patch_indices {tuple(patch_indices.shape)}: expected (B, V, K) with B = {batch}")
        low, high = int(patch_indices.min()), int(patch_indices.max())
        if low < 0 or high >= cells:
            raise EncoderError(f"patch_indices from {low} to {high}: the grid {self.grid} has cells 0 to {cells - 1}")
        embedded, views = self.embed_cells(pixel_values), patch_indices.shape[1]
        prefix = embedded[:, None, : self.num_prefix].expand(-1, views, -1, -1)
        rows = torch.arange(batch, device=embedded.device)[:, None, None]
        kept = torch.cat([prefix, embedded[rows, patch_indices + self.num_prefix]], dim=2)
        return self.run_blocks(kept.flatten(0, 1)).reshape(kept.shape)

    def embed_cells(self, pixel_values: Tensor) -> Tensor:
        """Embed pixels (B, 3, H, W) into what the first block sees (B, num_prefix + G, W), places added."""
        if self._family.patches:
            return self._embed_patches(pixel_values)
        extra = {"interpolate_pos_encoding": True} if self._family.interpolate else {}
        tokens: Tensor = self.model.embeddings(pixel_values, **extra)
        return getattr(self.model, self._family.pre_norm)(tokens) if self._family.pre_norm else tokens

    def _embed_patches(self, pixel_values: Tensor) -> Tensor:
        """Cut pixels (B, 3, H, W) into the grid's patches, row-major, channels last within each, and embed them."""
        (rows, columns), patch = self.grid, _pair(self.model.config.patch_size)[0]
        batch, cut = len(pixel_values), pixel_values[..., : rows * patch, : columns * patch]
        split = cut.reshape(batch, 3, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
        patches = split.reshape(batch, rows * columns, patch * patch * 3)
        shapes = torch.tensor(self.grid, device=pixel_values.device).expand(batch, 2)
        embedded: Tensor = self.model.embeddings(patches, shapes)
        return embedded

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """Run the stack of blocks over any tokens (B, L, W) of `embed_cells`; Swin has none."""
        # the only list of modules in these models, under a name that changes between them
        for block in next(module for module in self.model.modules() if isinstance(module, nn.ModuleList)):
            tokens = block(tokens, None)
        return self._last(tokens)

    def _last(self, tokens: Tensor) -> Tensor:
        return getattr(self.model, self._family.norm)(tokens) if self.settings.final_norm else tokens


def official_pixels(size: tuple[int, int]) -> PixelSpec:
    """Return the authors' pixel recipe: their resize, ImageNet's mean and std (method.md §7)."""
    return PixelSpec(size, _three(_MEAN), _three(_STD), "official")


def _three(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _pair(value: Any) -> tuple[int, int]:
    height, width = value if isinstance(value, (list, tuple)) else (value, value)
    return int(height), int(width)


def _grid(config: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the last grid for pixels of (height, width)."""
    patch = _pair(config.patch_size)
    if config.model_type != "swin":
        return size[0] // patch[0], size[1] // patch[1]
    grid = -(-size[0] // patch[0]), -(-size[1] // patch[1])
    for _ in config.depths[1:]:
        grid = (grid[0] + 1) // 2, (grid[1] + 1) // 2
    return grid


def _pixel_spec(folder: Path, config: Any, settings: ImageEncoderConfig) -> PixelSpec:
    """Size, mean and std from the folder's image processor where there is one, else the model's size and ImageNet's."""
    recipe = image_processor(folder)
    size = recipe.get("crop_size" if recipe.get("do_center_crop") else "size") or image_size(config)
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if "height" in size else size["shortest_edge"]
    if settings.resolution is not None:
        size = settings.resolution
        check_resolution(config, size)
    if settings.pixels == "official":
        return official_pixels(_pair(size))
    if recipe.get("do_normalize", True) is False:
        return PixelSpec(_pair(size), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return PixelSpec(_pair(size), _three(recipe.get("image_mean", _MEAN)), _three(recipe.get("image_std", _STD)))


def image_processor(folder: Path) -> dict[str, Any]:
    """Return the settings of transformers' image processor in a folder; empty where there are none."""
    recipe: dict[str, Any] = {}
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        path = folder / name
        if not recipe and path.is_file():
            values = read_object(path)
            recipe = values if key is None else values.get(key) or {}
            if abs(float(recipe.get("rescale_factor", 1 / 255)) * 255 - 1) > 0.01:
                raise EncoderError(f"{path}: rescale_factor {recipe['rescale_factor']}, only 1/255 is understood")
    return recipe


def image_size(config: Any) -> Any:
    """Side or sides in pixels that a model was made for; a NaFlex model's are those of a square of all its patches."""
    if hasattr(config, "image_size"):
        return config.image_size
    return int(config.num_patches**0.5) * _pair(config.patch_size)[0]


def check_resolution(config: Any, resolution: int) -> None:
    """Raise EncoderError for a resolution that the patches or windows of a vision configuration do not fit."""
    own, patch, side = _pair(image_size(config))[0], _pair(config.patch_size)[0], _grid(config, (resolution,) * 2)[0]
    if config.model_type == "swin" and side < min(config.window_size, _grid(config, (own, own))[0]):
        raise EncoderError(
            f"resolution {resolution}: Swin's last grid would be {side}x{side}, below its window of "
            f"{config.window_size}; use {own} or more"
        )
    if config.model_type != "swin" and resolution % patch and resolution != own:
        near = max(resolution // patch, 1) * patch
        raise EncoderError(f"resolution {resolution} is no multiple of the patch size {patch}: use {near}")
