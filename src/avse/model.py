"""AVSE: pictures and sentences to unit blocks, and the similarity between them (method, sections 1 to 3).

Joins two encoders, the radial bias sampling, the heads and the cut into blocks. Knows no loss, data set or index.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from avse import checkpoint, files
from avse.calibration import Calibration
from avse.config import ModelConfig
from avse.encoders import (
    ImageEncoder,
    TextEncoder,
    build_image_encoder,
    build_pair,
    build_text_encoder,
    own_heads,
)
from avse.encoders.dual import pair_config, pair_type
from avse.encoders.dual_towers import OwnImageHead, OwnTextHead
from avse.groups import GroupSampling
from avse.heads import ImageHead, TextHead, unit_blocks
from avse.images import PixelSpec
from avse.sampling import RadialBiasSampling
from avse.scoring import aeom

_Self = TypeVar("_Self", bound="AVSE")


class AVSE(nn.Module):
    """An asymmetric visual semantic embedding: P = V·D/C blocks an image, Q = D/C blocks a text.

    Args:
        config: encoders, views, widths. With heads `own`, what the pair itself fixes is filled in.
        image_encoder: use this encoder instead of building `config.image_encoder` with its pretrained weights.
        text_encoder: likewise.
        captions: training captions, from which a BiGRU's vocabulary is built.
        allow_download: fetch encoders that are named by a hub id and not on this machine.
    """

    def __init__(
        self,
        config: ModelConfig | None = None,
        *,
        image_encoder: ImageEncoder | None = None,
        text_encoder: TextEncoder | None = None,
        captions: Sequence[str] | None = None,
        allow_download: bool = False,
    ) -> None:
        super().__init__()
        config = config or ModelConfig()
        self.facts: dict[str, Any] = {}
        """What every figure of the model stands with: a seed, where training started, a pair's own logit_scale."""
        if config.heads == "own" and image_encoder is None and text_encoder is None:
            config, image_encoder, text_encoder, self.facts = build_pair(config, allow_download)
        self.config = config
        self.image_encoder = image_encoder or build_image_encoder(config.image_encoder, allow_download)
        self.text_encoder = text_encoder or build_text_encoder(config.text_encoder, captions, allow_download)
        keep, method = (config.keep, config.keep_eval), "nearest" if config.sampling == "groups" else config.sampling
        self.sampling = RadialBiasSampling(config.num_views, *keep, config.alpha, method, config.count_prefix)
        self.groups: GroupSampling | None = None
        """Chooses the views by the features themselves, in place of `sampling`."""
        if config.sampling == "groups" and config.num_views > 1:
            self.groups = GroupSampling(config.num_views, self.image_encoder.width, *keep, config.count_prefix)
        self.image_head, self.text_head = self._heads(config)
        self._calibrated: tuple[Calibration | None, str] = (None, "")
        self.folder: Path | None = None
        self._fingerprint: str | None = None

    def _heads(self, config: ModelConfig) -> tuple[ImageHead | OwnImageHead, TextHead | OwnTextHead]:
        if config.heads == "own":
            return own_heads(self.image_encoder, self.text_encoder, config)
        images, texts, dim = self.image_encoder.width, self.text_encoder.width, config.embed_dim
        return (
            ImageHead(images, dim, config.image_dropout, config.pooling),
            TextHead(texts, dim, config.dropout, config.masked_batch_norm, config.pooling),
        )

    # What an index needs to know.
    @property
    def num_image_blocks(self) -> int:
        """P."""
        return self.config.num_image_blocks

    @property
    def num_text_blocks(self) -> int:
        """Q."""
        return self.config.num_text_blocks

    @property
    def block_width(self) -> int:
        """C."""
        return self.config.block_width

    @property
    def pixels(self) -> PixelSpec | None:
        """How `encode_pixels` wants pictures; None for a model of regions, which reads none."""
        return self.image_encoder.pixels if all(self.image_encoder.pixels.size) else None

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device

    @property
    def fingerprint(self) -> str:
        """SHA-256 over configuration and weights: models of one fingerprint give the same embeddings."""
        if self._fingerprint is None:
            digest = hashlib.sha256(self._described().encode())
            for name, value in sorted(self.state_dict().items()):
                digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    @property
    def calibration(self) -> Calibration | None:
        """Which answers are weak; None also where the weights are others than those it was given for."""
        learnt, fingerprint = self._calibrated
        return learnt if learnt is not None and fingerprint == self.fingerprint else None

    @calibration.setter
    def calibration(self, learnt: Calibration | None) -> None:
        self._calibrated = (learnt, "" if learnt is None else self.fingerprint)

    def _described(self) -> str:
        """Say what shapes the embeddings besides the weights; of a pair without its folder, which may be named anew."""
        if self.config.heads == "avse":
            return self.config.model_dump_json()
        config = self.config.model_dump(mode="json", exclude={"image_encoder": {"source"}, "text_encoder": {"source"}})
        return json.dumps([config, self.image_encoder.describe(), self.text_encoder.describe()], sort_keys=True)

    def train(self: _Self, mode: bool = True) -> _Self:
        """Switch to training mode; frozen encoders stay in evaluation mode."""
        self._fingerprint = None
        return super().train(mode)

    # Tensors in, tensors out.
    def embed_views(self, inputs: Tensor, mask: Tensor | None = None, patch_indices: Tensor | None = None) -> Tensor:
        """Pool every view of a batch of images, before L2 and blocks.

        Args:
            inputs: pixels (B, 3, H, W), or token features (B, prefix + G, W) such as a cached grid or regions.
            mask: (B, prefix + G) True where a feature is valid; not where the views are sampled at the input.
            patch_indices: (B, V, K) int64 cells 0..G-1 without prefix; None draws them in training and takes the
                fixed views in evaluation, or lets the groups choose.

        Returns:
            (B, V, D).

        Raises:
            ValueError: for shapes that do not fit the encoder, or features where the views are sampled at the input.
        """
        return self.pool_views(self.image_tokens(inputs, patch_indices), mask, patch_indices)

    def image_tokens(self, inputs: Tensor, patch_indices: Tensor | None = None) -> Tensor:
        """Encode pixels (B, 3, H, W); features (B, G, W) are tokens already.

        Returns:
            (B, prefix + G, W), or where the views are sampled at the input (B, V, prefix + K, W).

        Raises:
            ValueError: as `embed_views`.
        """
        encoder, stage = self.image_encoder, self.config.image_encoder.sampling_stage
        if inputs.ndim == 4:
            if stage == "output":
                return encoder(inputs)
            return encoder.forward_views(inputs, self._views(encoder.grid, len(inputs), patch_indices))
        if inputs.ndim != 3 or inputs.shape[2] != encoder.width:
            raise ValueError(
                f"inputs have shape {tuple(inputs.shape)}; expected pixels (B, 3, H, W) or "
                f"features (B, G, {encoder.width})"
            )
        if stage == "input" and self.config.num_views > 1:
            raise ValueError(
                "features cannot be embedded: sampling_stage is 'input', so the views see pixels; "
                "pass pixels or set sampling_stage to 'output'"
            )
        return inputs

    def pool_views(self, tokens: Tensor, mask: Tensor | None = None, patch_indices: Tensor | None = None) -> Tensor:
        """Pool what `image_tokens` returned, by the same cells, into views (B, V, D); errors as `embed_views`."""
        if tokens.ndim == 4:
            return self.image_head(tokens.flatten(0, 1)).reshape(*tokens.shape[:2], -1)
        views, factors = self.kept_tokens(tokens, mask, patch_indices)
        return self.image_head.forward_views(tokens, views, mask, factors)

    def kept_tokens(
        self, tokens: Tensor, mask: Tensor | None = None, patch_indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Say which tokens every view keeps, by their places in the whole grid behind its prefix.

        Returns:
            (B, V, prefix + K) int64, and the factors of the groups where they are trained; errors as `embed_views`.
        """
        encoder, batch = self.image_encoder, len(tokens)
        prefix, cells = encoder.num_prefix, encoder.grid[0] * encoder.grid[1]
        if tokens.ndim == 3 and tokens.shape[1] != prefix + cells:
            if self.config.num_views > 1 or self.config.heads == "own":
                raise ValueError(
                    f"features have {tokens.shape[1]} tokens; {self.config.num_views} views, {self.config.heads} heads "
                    f"need the encoder's grid: {prefix} + {encoder.grid[0]}x{encoder.grid[1]}"
                )
            return torch.arange(tokens.shape[1], device=tokens.device).expand(batch, 1, -1), None
        factors = None
        if self.groups is not None and patch_indices is None:
            views, factors = self.groups(tokens[:, prefix:], None if mask is None else mask[:, prefix:])
        else:
            views = self._views(encoder.grid, batch, patch_indices)
        if prefix:
            kept = torch.arange(prefix, device=views.device).expand(*views.shape[:2], prefix)
            views = torch.cat([kept, views + prefix], dim=2)
            factors = None if factors is None else nn.functional.pad(factors, (prefix, 0), value=1.0)
        return views, factors

    def embed_pixels(self, pixel_values: Tensor, patch_indices: Tensor | None = None) -> Tensor:
        """Embed pixels (B, 3, H, W) [, cells (B, V, K)] into unit blocks (B, P, C)."""
        return unit_blocks(self.unit_views(self.embed_views(pixel_values, None, patch_indices)), self.block_width)

    def embed_features(self, grid: Tensor, mask: Tensor | None = None, patch_indices: Tensor | None = None) -> Tensor:
        """Embed token features (B, G, W), prefix tokens first, [mask (B, G), cells (B, V, K)] into blocks (B, P, C)."""
        return unit_blocks(self.unit_views(self.embed_views(grid, mask, patch_indices)), self.block_width)

    @staticmethod
    def unit_views(views: Tensor) -> Tensor:
        """L2-normalise pooled views (B, V, D)."""
        return nn.functional.normalize(views, dim=-1)

    def embed_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed token ids (B, L) under a mask (B, L) into unit blocks (B, Q, C)."""
        return self.embed_token_features(self.text_encoder(input_ids, attention_mask), attention_mask)

    def embed_token_features(self, features: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed a text encoder's tokens (B, L, W) under a mask (B, L) into unit blocks (B, Q, C)."""
        return unit_blocks(self.text_head(features, attention_mask), self.block_width)

    def _views(self, grid: tuple[int, int], batch: int, patch_indices: Tensor | None) -> Tensor:
        if patch_indices is None:
            return self.sampling(grid, batch).to(self.device)
        cells, expected = grid[0] * grid[1], (batch, self.config.num_views)
        if patch_indices.ndim != 3 or tuple(patch_indices.shape[:2]) != expected:
            raise ValueError(f"patch_indices have shape {tuple(patch_indices.shape)}; expected {(*expected, 'K')}")
        if not 0 <= int(patch_indices.min()) <= int(patch_indices.max()) < cells:
            low, high = int(patch_indices.min()), int(patch_indices.max())
            raise ValueError(
                f"patch_indices lie in {low}..{high}; the {grid[0]}x{grid[1]} grid has cells 0..{cells - 1}"
            )
        return patch_indices.to(self.device)

    # Pictures and sentences in, numpy out.
    def encode_images(self, images: Any, *, batch_size: int = 64) -> np.ndarray:
        """Embed pictures: paths, Pillow images or arrays (H, W[, 3]); one alone or many.

        Returns:
            (n, P, C) float32 unit blocks; (P, C) for one picture. A picture's rows depend on it and the model alone.

        Raises:
            ImageError: a picture cannot be read; it names the picture and the reason.
        """
        if _is_one_image(images):
            return self.encode_images([images], batch_size=batch_size)[0]
        load = self.image_encoder.load_pixels
        with ThreadPoolExecutor(2) as pool:
            blocks = [self.encode_pixels(np.stack(list(pool.map(load, part)))) for part in _chunks(images, batch_size)]
        return np.concatenate(blocks) if blocks else np.zeros((0, self.num_image_blocks, self.block_width), np.float32)

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Embed pixels (n, 3, H, W) float32, made as `pixels` says, into unit blocks (n, P, C) float32."""
        with self._evaluating():
            return self.embed_pixels(torch.from_numpy(pixels).to(self.device)).cpu().numpy()

    def encode_texts(self, texts: str | Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Embed sentences, one alone or many; a sentence cut at the encoder's limit warns.

        Returns:
            (m, Q, C) float32 unit blocks; (Q, C) for one sentence.
        """
        if isinstance(texts, str):
            return self.encode_texts([texts], batch_size=batch_size)[0]
        out = np.zeros((len(texts), self.num_text_blocks, self.block_width), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        with self._evaluating():
            for rows in _chunks(order, batch_size):
                tokens = self.text_encoder.tokenize([texts[i] for i in rows])
                self.text_encoder.warn_of_cuts([texts[i] for i in rows], tokens.truncated, stacklevel=4)
                ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
                out[rows] = self.embed_tokens(ids, mask).cpu().numpy()
        return out

    def similarity(self, images: np.ndarray, texts: np.ndarray) -> np.ndarray:
        """Score image blocks (n, P, C) against text blocks (m, Q, C) -> (n, m): S = Σ_j max_i ⟨v_i, t_j⟩.

        The similarity is not symmetric. With P = Q the two sides cannot be told apart by shape: images come first.

        Raises:
            ValueError: the block counts are not the model's (P, Q) or the width is not C.
        """
        expected = ((self.num_image_blocks, self.block_width), (self.num_text_blocks, self.block_width))
        if images.ndim != 3 or texts.ndim != 3 or (images.shape[1:], texts.shape[1:]) != expected:
            turned = images.ndim == texts.ndim == 3 and (texts.shape[1:], images.shape[1:]) == expected
            raise ValueError(
                f"images have shape {images.shape}, texts {texts.shape}; this model has "
                f"P = {self.num_image_blocks} image and Q = {self.num_text_blocks} text blocks "
                f"of width {self.block_width}" + ("; the two sides are exchanged: images come first" if turned else "")
            )
        return aeom(images, texts)

    # On disk.
    def save_pretrained(self, folder: str | Path, *, force: bool = False, extra: dict[str, Any] | None = None) -> Path:
        """Write the model as a self-contained folder, atomically.

        Args:
            folder: where.
            force: replace a folder that is there.
            extra: plain values that every figure of the model stands with, such as its seed; added to `facts`.

        Raises:
            FileExistsError: the folder exists and `force` is False.
        """
        fingerprint = self.fingerprint

        def fill(target: Path) -> None:
            files.write_text(target / checkpoint.CONFIG, self.config.model_dump_json(indent=2))
            self.image_encoder.save(target / checkpoint.IMAGE_ENCODER)
            self.text_encoder.save(target / checkpoint.TEXT_ENCODER)
            checkpoint.save_tensors(target / checkpoint.WEIGHTS, self.state_dict())
            if self.calibration is not None:
                files.write_json(target / checkpoint.CALIBRATION, self.calibration.to_dict())

        self.facts = {**self.facts, **(extra or {})}
        checkpoint.write_folder(folder, fill, {"fingerprint": fingerprint, "facts": self.facts}, force=force)
        self.folder = Path(folder)
        return self.folder

    @classmethod
    def from_dual_encoder(
        cls,
        folder: str | Path,
        num_views: int = 1,
        *,
        block_width: int | None = None,
        keep: float = 0.8,
        sampling_stage: Literal["input", "output"] | None = None,
        resolution: int | None = None,
        frozen: bool = True,
        allow_download: bool = False,
    ) -> AVSE:
        """Take a CLIP, SigLIP or SigLIP 2 pair of transformers as it is: own pooling, projections, pixels and padding.

        At one view and full width S is the cosine, transformers' `logits_per_image` without scale and bias (they are
        in `facts`); with views it is the largest cosine of a view: P = V, Q = 1, C = the pair's width.

        Args:
            folder: of the pair: config.json, safetensors, tokenizer, preprocessor_config.json; or a hub id.
            num_views: V.
            block_width: C; None: the pair's width.
            keep: share of the grid's cells that a view keeps.
            sampling_stage: where views are sampled; None: `input` for CLIP, whose CLS token sees everything afterwards,
                `output` for SigLIP, whose attention pooling looks at a view's cells alone.
            resolution: side in pixels; None: the pair's own. A NaFlex checkpoint (`Siglip2Model`) sees one square grid,
                to which pictures are squashed, and not each picture's own shape.
            frozen: keep the towers as they are in training (the heads are trained).
            allow_download: fetch a hub id that is not on this machine.

        Raises:
            EncoderError: No such folder, no pair, not whole, or views that it cannot have.
            ConfigError: A width that does not divide into blocks.
        """
        asked: dict[str, Any] = {
            "block_width": block_width,
            "keep": keep,
            "sampling_stage": sampling_stage,
            "resolution": resolution,
            "frozen": frozen,
        }
        plain = {"block_width": None, "keep": 0.8, "sampling_stage": None, "resolution": None, "frozen": True}
        model = cls(pair_config(str(folder), num_views, allow_download=allow_download, **asked))
        if num_views == 1 and asked == plain and Path(folder).is_dir():
            model.folder = Path(folder)  # whoever opens the folder again gets this very model
        return model.eval()

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        allow_download: bool = False,
        adapt: Callable[[ModelConfig], ModelConfig] | None = None,
    ) -> AVSE:
        """Load a saved model from a local folder; every file is checked against the manifest.

        Args:
            folder: the folder; a hub id only with `allow_download`.
            allow_download: fetch a hub id over the network.
            adapt: changes the saved configuration, such as views or what is frozen; the weights must still fit.

        Raises:
            CheckpointError: no such folder, one of another kind, or weights that do not fit.
            ManifestError: a file is missing or was changed.
        """
        path = checkpoint.recover(folder)
        if not path.is_dir():
            if not allow_download:
                raise checkpoint.CheckpointError(
                    f"no model folder {str(folder)!r}: avse train makes one, in RUN/model (a hub id is fetched from "
                    "Python alone, with allow_download=True)"
                )
            from huggingface_hub import snapshot_download

            path = Path(snapshot_download(str(folder)))
        if found := _other_folder(path):
            raise checkpoint.CheckpointError(
                f"{path} {found}; a model folder, such as avse train leaves in RUN/model, has {checkpoint.CONFIG}, "
                f"{checkpoint.WEIGHTS} and {files.MANIFEST}"
            )
        manifest = files.verify_manifest(path)
        saved = checkpoint.read_config(path)
        config = saved if adapt is None else adapt(saved)
        settings = (None, None) if adapt is None else (config.image_encoder, config.text_encoder)
        model = cls(
            config,
            image_encoder=ImageEncoder.from_saved(path / checkpoint.IMAGE_ENCODER, settings[0]),
            text_encoder=TextEncoder.from_saved(path / checkpoint.TEXT_ENCODER, settings[1]),
        )
        checkpoint.load_weights(model, checkpoint.load_tensors(path / checkpoint.WEIGHTS), path / checkpoint.WEIGHTS)
        model.eval()
        model.facts = manifest.get("facts", {})
        if config == saved:
            model.folder, model._fingerprint = path, manifest.get("fingerprint")
            if checkpoint.CALIBRATION in manifest["files"]:
                model.calibration = checkpoint.read_calibration(path)
        return model

    def _evaluating(self) -> _Evaluation:
        return _Evaluation(self)


class _Evaluation:
    """Evaluation mode without gradients, and the former mode afterwards."""

    def __init__(self, model: AVSE) -> None:
        self.model, self.training, self.grad = model, model.training, torch.inference_mode()

    def __enter__(self) -> None:
        if self.training:
            self.model.eval()
        self.grad.__enter__()

    def __exit__(self, *error: object) -> None:
        self.grad.__exit__(*error)
        if self.training:
            self.model.train()


def _other_folder(path: Path) -> str:
    """Say what a folder without a manifest is, if it is something else than a damaged model."""
    if (path / files.MANIFEST).exists() or (path / checkpoint.IMAGE_ENCODER).exists():
        return ""
    if (path / "model" / files.MANIFEST).is_file():
        return f"is the folder of a run: its model is {path / 'model'}"
    if (path / "checkpoints").is_dir():
        return "is the folder of a run that was not finished: avse train --resume goes on with it"
    if (path / checkpoint.CONFIG).is_file():
        if pair_type(path):
            return "is a pair of transformers: AVSE.from_dual_encoder(FOLDER) takes it as it is"
        return f"is not a model of avse but looks like an encoder of transformers: train with it as a ...source={path}"
    return "is no model folder"


def _is_one_image(images: Any) -> bool:
    if isinstance(images, np.ndarray):
        return images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (3, 4))
    return isinstance(images, (str, Path, bytes)) or not isinstance(images, Iterable)


def _chunks(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
