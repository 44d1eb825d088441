"""The authors' checkpoint (.pth) as a model of ours: read without running anything of it, renamed, checked, complete.

The file is {'model': state dict, or [image state, text state], 'opt': argparse.Namespace, 'epoch', 'best_rsum', ...}.
It holds the backbones (a ViT and a BERT of transformers 4 or 5): their folders give configuration and tokenizer alone.
Knows their names and ours; nothing of the command line.
"""

from __future__ import annotations

import argparse
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avse import files
from avse.checkpoint import CheckpointError
from avse.config import PRESETS, ImageEncoderConfig, ModelConfig, TextEncoderConfig, parse
from avse.encoders.base import transformer_config
from avse.encoders.image import TransformerGrid, official_pixels
from avse.encoders.text import TransformerText, load_tokenizer
from avse.model import AVSE

PARTS = {
    "img_enc.visual_encoder.": "image_encoder.model.",
    "img_enc.image_encoder.fc.": "image_head.project.",
    "img_enc.image_encoder.gpool.": "image_head.pool.",
    "txt_enc.bert.": "text_encoder.model.",
    "txt_enc.fc.": "text_head.project.",
    "txt_enc.gpool.": "text_head.pool.",
    "txt_enc.ln.": "text_head.norm.",
    "txt_enc.mlp.layers.0.": "text_head.mlp.0.",
    "txt_enc.mlp.bns.0.": "text_head.mlp.1.",
    "txt_enc.mlp.layers.1.": "text_head.mlp.3.",
}
"""Their prefix -> ours."""
VIT = (
    ("encoder.layer.", "layers."),
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
)
"""A ViT's names in transformers 4 -> in transformers 5, in this order; names of 5 pass unchanged."""
_WRAPPED = re.compile(r"(?:^|(?<=_enc\.))module\.")
_BACKBONES = tuple(PARTS)[0], tuple(PARTS)[3]
_CODES, _PATCHES = "embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight"
_IDLE = ("pooler.", "embeddings.position_ids")
"""Parts of a backbone that do not reach the embedding."""
_DEFAULT_SIDE = 224
"""What their parser puts into img_res unasked; files of other sizes carry it too."""


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What the file holds: weights by the authors' names, options, and plain facts (epoch, best_rsum)."""

    path: Path
    weights: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, int | float] = field(default_factory=dict)


@dataclass(frozen=True)
class Imported:
    """A model from the authors' weights, in evaluation mode.

    Attributes:
        model: the model, complete.
        facts: what its figures stand with: file, digest, epoch, the rSum that the file reports.
        unused: weights of the file that no embedding depends on, by the authors' names.
        notes: choices that the file left open, one sentence each.
    """

    model: AVSE
    facts: dict[str, Any]
    unused: list[str]
    notes: list[str]


def vit_name(name: str) -> str:
    """Rename a ViT's weight from transformers 4 to 5.

    >>> vit_name("encoder.layer.3.attention.attention.query.weight"), vit_name("encoder.layer.3.output.dense.bias")
    ('layers.3.attention.q_proj.weight', 'layers.3.mlp.fc2.bias')
    """
    for theirs, ours in VIT:
        name = name.replace(theirs, ours)
    return name


def our_name(name: str) -> str | None:
    """Return our name of a weight of the authors', None where we have no such part."""
    for theirs, ours in PARTS.items():
        if name.startswith(theirs):
            rest = name[len(theirs) :]
            return ours + (vit_name(rest) if theirs == _BACKBONES[0] else rest)
    return None


def their_name(name: str) -> str:
    """Return the authors' name of a weight of ours (a ViT's as in transformers 4).

    >>> their_name("image_encoder.model.layers.3.mlp.fc2.bias"), their_name("text_head.mlp.1.weight")
    ('img_enc.visual_encoder.encoder.layer.3.output.dense.bias', 'txt_enc.mlp.bns.0.weight')
    """
    theirs, ours = next((part for part in PARTS.items() if name.startswith(part[1])), ("", ""))
    name = name[len(ours) :]
    if theirs == _BACKBONES[0]:
        for old, new in VIT:
            name = name.replace(new, old)
    return theirs + name


def read_official(path: str | Path) -> OfficialCheckpoint:
    """Read the authors' file: tensors, plain values and argparse.Namespace, nothing that could run code.

    Raises:
        CheckpointError: not readable, another kind of file, or one that names further types.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    content = _unpickle(path)
    if not isinstance(content, dict) or "model" not in content:
        found = f"the keys {', '.join(map(repr, content))}" if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} holds {found or 'nothing'}; the authors' checkpoint is a dict with 'model' and 'opt'"
        )
    options = content.get("opt", {})
    options = vars(options) if isinstance(options, argparse.Namespace) else options
    if not isinstance(options, dict):
        raise CheckpointError(f"{path}: 'opt' is {type(options).__name__}; an argparse.Namespace or a dict is wanted")
    facts = {}
    for key in ("epoch", "best_rsum", "Eiters"):
        value = content.get(key)
        if isinstance(value, (int, float)) and math.isfinite(value):
            facts[key] = value
    return OfficialCheckpoint(path, _weights(path, content["model"]), options, facts)


def import_official(
    path: str | Path,
    image_encoder: str | Path,
    text_encoder: str | Path,
    *,
    block_width: int | None = None,
    resolution: int | None = None,
) -> Imported:
    """Turn the authors' checkpoint into a model with the `official` profile.

    Args:
        path: the .pth file.
        image_encoder: folder with the ViT's config.json; its weights are not read.
        text_encoder: folder with the BERT's config.json and tokenizer; its weights are not read.
        block_width: C; None: the file's block_dim, else 256.
        resolution: side of the pictures in pixels; None: as the file and the encoder's configuration say.

    Raises:
        CheckpointError: a file of another kind, weights that are missing or do not fit the folders or the options.
        EncoderError: no such folder, another architecture.
        ConfigError: C does not divide D.
    """
    found = read_official(path)
    preset, notes = PRESETS["official"]["model"], list[str]()
    vision, side = _vision(found, Path(image_encoder), resolution, notes)
    tokenizer, text = load_tokenizer(Path(text_encoder)), transformer_config(Path(text_encoder))
    images = {**preset["image_encoder"], "source": str(image_encoder)}
    if (side, side) != _pair(vision.image_size):
        images["resolution"] = side
    longest = min(tokenizer.model_max_length, getattr(text, "max_position_embeddings", 512), 4096)
    texts = {**preset["text_encoder"], "source": str(text_encoder), "max_length": longest}
    values = {
        **preset,
        "image_encoder": images,
        "text_encoder": texts,
        "embed_dim": _embed_dim(found),
        "block_width": _block_width(found, block_width, notes),
    }
    if isinstance(views := found.options.get("n_group"), int) and views > 0:
        values["num_views"] = views
    config: ModelConfig = parse(ModelConfig, values)
    pixels = official_pixels((side, side) if "resolution" in images else _pair(vision.image_size))
    model = AVSE(
        config,
        image_encoder=TransformerGrid(ImageEncoderConfig(**images), _random(vision), pixels),
        text_encoder=TransformerText(TextEncoderConfig(**texts), _random(text), tokenizer),
    )
    unused = _load(model, found)
    facts: dict[str, Any] = {"imported_from": found.path.name, "imported_sha256": files.sha256(found.path)}
    facts |= {
        name: found.facts[key]
        for key, name in (("epoch", "epoch"), ("best_rsum", "reported_rsum"))
        if key in found.facts
    }
    if "best_rsum" in found.facts:
        facts["reported_on"] = "test, on which the authors chose the checkpoint"
    return Imported(model.eval(), facts, unused, notes)


def _unpickle(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(2, "is a folder: name the file in it" if path.is_dir() else "no such file", str(path))
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
            warnings.simplefilter("ignore")  # of pickle protocols that torch does not write itself
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that is damaged on purpose can raise anything
        text = " ".join(str(error).split())
        named = re.search(r"GLOBAL ([\w.]+)", text)
        if named:
            raise CheckpointError(
                f"{path} is refused and nothing of it was run: it names {named[1][:80]}, and beside tensors and plain "
                "values only argparse.Namespace is read; a file of a trusted source can be saved again without it"
            ) from error
        why = "a pickle with instructions that are not allowed" if "Weights only load failed" in text else text
        why = f"{type(error).__name__}: {why[:200] or 'the file ends early'}"
        raise CheckpointError(f"{path} cannot be read as a checkpoint of torch: {why}") from error


def _weights(path: Path, states: Any) -> dict[str, Tensor]:
    """Bring the states under the authors' full names, without the prefixes of data parallelism."""
    if isinstance(states, (list, tuple)):
        sides = zip(("img_enc.", "txt_enc.", "sim_enc."), states, strict=False)
        merged: dict[Any, Any] = {}
        for side, state in sides:
            if isinstance(state, Mapping):
                merged |= {f"{side}{_WRAPPED.sub('', str(name))}": value for name, value in state.items()}
        states = merged
    if not isinstance(states, Mapping) or not states:
        raise CheckpointError(f"{path}: 'model' is {type(states).__name__}; a state dict, or a list of two, is wanted")
    weights = {_WRAPPED.sub("", str(name)): value for name, value in states.items()}
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: weight {name} is {type(value).__name__}, no tensor")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: weight {name} holds NaN or an infinity")
    return weights


def _embed_dim(found: OfficialCheckpoint) -> int:
    """Return D as the options and both heads say it."""
    said = {"opt.embed_size": found.options.get("embed_size")}
    for name in ("img_enc.image_encoder.fc.weight", "txt_enc.fc.weight"):
        said[name] = len(found.weights[name]) if name in found.weights and found.weights[name].ndim else None
    widths = {key: value for key, value in said.items() if value is not None}
    if len(set(widths.values())) != 1 or not all(isinstance(value, int) for value in widths.values()):
        shown = ", ".join(f"{key}: {value}" for key, value in widths.items()) or "neither embed_size nor the heads"
        raise CheckpointError(f"{found.path}: the embedding's width D is not one number ({shown})")
    return next(iter(widths.values()))


def _block_width(found: OfficialCheckpoint, asked: int | None, notes: list[str]) -> int:
    """Return C: as asked, else the file's, else the authors' 256."""
    own = found.options.get("block_dim")
    own = own[0] if isinstance(own, (list, tuple)) and len(own) == 1 else own
    if asked is not None:
        if own is not None and own != asked:
            notes.append(f"block width {asked} as asked; the file says {own}")
        return asked
    if own is None:
        return 256
    if not isinstance(own, int):
        raise CheckpointError(f"{found.path}: opt.block_dim is {own!r}, not one width: say it with --block-width")
    return own


def _vision(found: OfficialCheckpoint, folder: Path, asked: int | None, notes: list[str]) -> tuple[Any, int]:
    """Return the ViT's configuration, fitted to the file's position codes, and the side of the pictures."""
    config = transformer_config(folder)
    if config.model_type != "vit":
        raise CheckpointError(f"{folder}: model_type {config.model_type!r}; the authors' checkpoints hold a ViT")
    own, patch = _pair(config.image_size), _pair(config.patch_size)
    codes, projection = (found.weights.get(_BACKBONES[0] + name) for name in (_CODES, _PATCHES))
    fits = codes is None or projection is None or tuple(projection.shape[2:]) != patch or codes.ndim != 3
    cells = 0 if fits or codes is None else codes.shape[1] - 1
    side = math.isqrt(cells)
    if cells and cells != (own[0] // patch[0]) * (own[1] // patch[1]) and side * side == cells:
        made_for = side * patch[0]
        if asked is None:
            raise CheckpointError(
                f"{found.path}: its position codes are for {side}x{side} cells, pictures of {made_for} px, and "
                f"{folder / 'config.json'} says image_size {config.image_size}: take the configuration it was trained "
                f"with, or say --resolution {made_for}"
            )
        notes.append(f"position codes for {made_for} px as the file has them; {folder} says {config.image_size}")
        config.image_size, own = made_for, (made_for, made_for)
    if asked is not None and asked != own[0] and asked % patch[0]:
        near = max(1, asked // patch[0]) * patch[0]
        raise CheckpointError(f"resolution {asked} is no multiple of the patch size {patch[0]}: use {near}")
    return config, asked or _side(found, own[0], patch[0], notes)


def _side(found: OfficialCheckpoint, own: int, patch: int, notes: list[str]) -> int:
    """Return the side of the pictures: the file's img_res where it was set, else the encoder's own."""
    said = found.options.get("img_res")
    if not isinstance(said, int) or said == own:
        return own
    if said == _DEFAULT_SIDE or said % patch or said < 16:
        notes.append(
            f"pictures at the encoder's own {own} px; the file says img_res {said}, their default: "
            f"--resolution {said} if it was trained so"
        )
        return own
    notes.append(f"pictures at {said} px as the file says (img_res), position codes for {own} px interpolated")
    return said


def _load(model: AVSE, found: OfficialCheckpoint) -> list[str]:
    """Load the weights; returns the names of those left over."""
    own, chosen, unused, extra = model.state_dict(), dict[str, str](), list[str](), list[str]()
    for name in found.weights:
        ours = our_name(name)
        if ours in chosen:
            raise CheckpointError(f"{found.path}: {chosen[ours]} and {name} are the same weight")
        if ours in own:
            chosen[ours] = name
            continue
        unused.append(name)
        backbone = next((prefix for prefix in _BACKBONES if name.startswith(prefix)), None)
        if backbone and not name[len(backbone) :].startswith(_IDLE):
            extra.append(name)
    missing = [their_name(name) for name in own if name not in chosen]
    shapes = [
        f"{name} has shape {tuple(found.weights[name].shape)}, {ours} of the configuration {tuple(own[ours].shape)}"
        for ours, name in chosen.items()
        if found.weights[name].shape != own[ours].shape
    ]
    for problem, names in (
        ("weights are missing", missing),
        ("weights do not fit the folders' configurations", shapes),
        ("weights of the encoders have no place in the folders' configurations", extra),
    ):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            raise CheckpointError(f"{found.path}: {len(names)} {problem}: {'; '.join(names[:8])}{more}")
    model.load_state_dict({ours: found.weights[name].to(own[ours].dtype) for ours, name in chosen.items()})
    return unused


def _random(config: Any) -> Any:
    from transformers import AutoModel

    return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _pair(value: Any) -> tuple[int, int]:
    height, width = value if isinstance(value, (list, tuple)) else (value, value)
    return int(height), int(width)
