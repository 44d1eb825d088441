"""CLIP, SigLIP and SigLIP 2 pairs of transformers as they are: their own pooling, projections, pixels and padding.

Knows the three families and what of a configuration is theirs to say. A pair becomes two encoders (tokens) and two own
heads (pooled vectors), so that views, caches and training work as with any other encoder. A NaFlex checkpoint
(`Siglip2Model`), which would take each picture in its own shape, is given all pictures on one square grid here: they
are squashed to it; SigLIP 2 checkpoints of fixed resolution are `SiglipModel` and as they are.
"""

from __future__ import annotations

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from avse.config import ConfigError, ModelConfig, parse
from avse.encoders.base import (
    EncoderError,
    ImageEncoder,
    TextEncoder,
    load_transformer,
    refusing,
    transformer_config,
)
from avse.encoders.dual_pixels import PAIRS, pair_pixels
from avse.encoders.dual_towers import DualImage, DualText, OwnImageHead, OwnTextHead
from avse.encoders.hub import local_folder
from avse.encoders.text import load_tokenizer

FREE = frozenset(
    "num_views block_width keep keep_eval count_prefix alpha sampling image_encoder.source image_encoder.resolution "
    "image_encoder.sampling_stage image_encoder.frozen text_encoder.source text_encoder.frozen".split()
)
"""The settings of a model that a pair leaves open; the others are the pair's own."""


def pair_type(folder: str | Path) -> str:
    """Return "clip", "siglip" or "siglip2" for a pair's folder, "" for any other."""
    path = Path(folder) / "config.json"
    try:
        kind = json.loads(path.read_text("utf-8")).get("model_type") if path.is_file() else ""
    except (ValueError, AttributeError, RecursionError):
        return ""
    return kind if isinstance(kind, str) and kind in PAIRS else ""


def own_heads(
    image_encoder: ImageEncoder, text_encoder: TextEncoder, config: ModelConfig
) -> tuple[OwnImageHead, OwnTextHead]:
    """Return the own heads of a pair.

    Raises:
        EncoderError: The encoders are no pair, or the views cannot be had of it.
        ConfigError: C does not divide the pair's width.
    """
    if not isinstance(image_encoder, DualImage) or not isinstance(text_encoder, DualText):
        raise EncoderError("heads 'own' are those of a pair (CLIP, SigLIP): AVSE.from_dual_encoder(FOLDER) builds one")
    if not config.embed_dim == image_encoder.dim == text_encoder.dim:
        raise EncoderError(
            f"embed_dim {config.embed_dim}: the own heads of this pair give vectors of {image_encoder.dim} "
            f"(images) and {text_encoder.dim} (texts)"
        )
    config.check_blocks()
    if config.sampling == "groups":
        raise EncoderError("sampling 'groups' is for regions and our heads: with heads 'own' use gumbel or nearest")
    stage = config.image_encoder.sampling_stage
    if config.num_views > 1 and stage == "output" and image_encoder.num_prefix:
        raise EncoderError(
            f"num_views {config.num_views} with sampling_stage 'output': CLIP pools its CLS token alone, so that all "
            "views would be equal; set sampling_stage to 'input' (model.image_encoder.sampling_stage=input), or take "
            "one view"
        )
    return image_encoder.own_head(), text_encoder.own_head()


def pair_config(
    source: str,
    num_views: int,
    *,
    block_width: int | None,
    keep: float,
    sampling_stage: str | None,
    resolution: int | None,
    frozen: bool,
    allow_download: bool,
) -> ModelConfig:
    """Return the settings of a pair's model; arguments and errors as in `AVSE.from_dual_encoder`."""
    folder = local_folder(source, allow_download)
    with refusing(folder, "no whole pair of encoders"):
        kind, _, dim = _open(folder)
    stage = sampling_stage or ("input" if num_views > 1 and PAIRS[kind].class_token else "output")
    values = {
        "image_encoder": {"source": source, "frozen": frozen, "sampling_stage": stage, "resolution": resolution},
        "text_encoder": {"source": source, "frozen": frozen},
        "num_views": num_views,
        "embed_dim": dim,
        "block_width": dim if block_width is None else block_width,
        "keep": keep,
        "heads": "own",
    }
    with refusing(folder, "no whole pair of encoders"):
        config: ModelConfig = parse(ModelConfig, values)
    return config


def _open(folder: Path) -> tuple[str, Any, int]:
    """Return a pair's model_type, its configuration and the width of its vectors."""
    whole = transformer_config(folder)
    if whole.model_type not in PAIRS:
        titles = ", ".join(family.title for family in PAIRS.values())
        raise EncoderError(f"{folder}: model_type {whole.model_type!r} is no pair of encoders; known are {titles}")
    if PAIRS[whole.model_type].class_token:
        return whole.model_type, whole, int(whole.projection_dim)
    dim, other = int(whole.vision_config.hidden_size), whole.text_config.projection_size
    if other != dim:
        raise EncoderError(f"{folder}: its images have width {dim}, its texts {other}: they must agree")
    return whole.model_type, whole, dim


def build_pair(
    config: ModelConfig, allow_download: bool = False
) -> tuple[ModelConfig, DualImage, DualText, dict[str, float]]:
    """Load the pair that both encoders of a configuration name.

    Returns:
        The configuration with the pair's own settings filled in, the two encoders, and the scale (and bias) of the
        pair's logits.

    Raises:
        EncoderError: No such folder, another kind of model, or one that is not whole.
        ConfigError: A setting that is the pair's own has another value.
    """
    source = config.image_encoder.source
    if config.text_encoder.source != source:
        raise EncoderError(
            f"heads 'own' are those of one pair (CLIP, SigLIP), and the sources are {source!r} and "
            f"{config.text_encoder.source!r}: give the pair's folder as init_from (--set init_from=FOLDER)"
        )
    folder = local_folder(source, allow_download)
    with refusing(folder, "no whole pair of encoders"):
        return _load_pair(config, folder)


def _load_pair(config: ModelConfig, folder: Path) -> tuple[ModelConfig, DualImage, DualText, dict[str, float]]:
    kind, whole, dim = _open(folder)
    family, text = PAIRS[kind], whole.text_config
    tokenizer = load_tokenizer(folder)
    own = {
        "heads": "own",
        "embed_dim": dim,
        "dropout": 0.0,
        "image_encoder.final_norm": not family.class_token,
        "text_encoder.max_length": min(text.max_position_embeddings, tokenizer.model_max_length),
    }
    config = fit_config(config, own, FREE, f"{folder} ({family.title})")
    pixels = pair_pixels(folder, whole, config.image_encoder.resolution)
    model = load_transformer(folder, unused=())
    projections = (model.visual_projection, model.text_projection) if family.class_token else (None, None)
    image = DualImage(config.image_encoder, model.vision_model, pixels, dim, projections[0])
    facts = {"logit_scale": round(model.logit_scale.detach().exp().item(), 4)}
    if not family.class_token:
        facts["logit_bias"] = round(model.logit_bias.item(), 4)
    return config, image, DualText(config.text_encoder, model.text_model, tokenizer, dim, projections[1]), facts


def fit_config(
    wanted: ModelConfig, own: dict[str, Any], free: Set[str], whose: str, strict: bool = False
) -> ModelConfig:
    """Join what is wanted with what weights that are there already fix.

    Args:
        wanted: the settings asked for.
        own: the fixed settings, by dotted name; those neither here nor free are their defaults.
        free: names of the settings that are taken from `wanted`.
        whose: what the weights are, for the message.
        strict: a setting of `wanted` that is a default counts as asked for, too.

    Raises:
        ConfigError: Fixed settings are asked for with other values; all of them are named.
    """
    asked, default = _flat(wanted.model_dump()), _flat(ModelConfig().model_dump())
    fixed = {name: own.get(name, default[name]) for name in asked if name not in free}
    wrong = [
        f"model.{name} is {asked[name]!r} there {value!r}"
        for name, value in fixed.items()
        if asked[name] != value and (strict or asked[name] != default[name])
    ]
    if wrong:
        raise ConfigError(f"{whose} fixes settings that are asked for otherwise: {'; '.join(wrong)}: leave them out")
    values: dict[str, Any] = {}
    for name, value in {**asked, **fixed}.items():
        section, _, key = name.rpartition(".")
        (values.setdefault(section, {}) if section else values)[key] = value
    config: ModelConfig = parse(ModelConfig, values)
    return config


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in values.items():
        inner = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        flat.update(inner)
    return flat
