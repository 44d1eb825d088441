"""Every setting of avse, its default and its limits; YAML in and out.

A recipe is one YAML file with the sections `model`, `data`, `train`; `base` names another that it stands on. An unknown
key is an error that suggests the nearest name. Presets are differences against the defaults: the baselines are presets
of the same parts. This module knows no torch and reads no picture.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from avse.bounded import load_yaml


class ConfigError(ValueError):
    """A setting that does not exist, has a wrong type or lies outside its limits."""


class Section(BaseModel):
    """One section of a recipe: unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, frozen=True)


class ImageEncoderConfig(Section):
    """Which grid encoder reads the pictures and how."""

    source: str = "efficientnet-lite0"
    """`efficientnet-lite0`; `regions` (features made beforehand); a local folder of transformers (ViT, Swin, DINOv2,
    SigLIP/CLIP vision), or a hub id, which is fetched only when asked (--allow-download)."""
    resolution: int | None = Field(None, ge=16, le=2048)
    """Side in pixels of the square the encoder sees; None: the encoder's own."""
    width: int | None = Field(None, ge=1)
    """`regions` only: W of the features, 2048 (BUTD) or 2054 (VinVL)."""
    num_regions: int = Field(36, ge=1)
    """`regions` only: G, features an image."""
    sampling_stage: Literal["input", "output"] = "output"
    """Sample views before the transformer blocks, or on the last grid."""
    frozen: bool = True
    final_norm: bool = True
    """Tokens after the last LayerNorm; the authors' code takes them before it."""
    pixels: Literal["encoder", "official"] = "encoder"
    """The encoder's own mean, std and an antialiased resize; or the authors' resize with ImageNet's mean and std."""


class TextEncoderConfig(Section):
    """Which encoder reads the sentences."""

    source: str = "minilm"
    """`minilm`, `bigru`, or a local folder of transformers (BERT family), or a hub id (as for pictures)."""
    max_length: int = Field(64, ge=4, le=4096)
    """Longest sentence in tokens; longer ones are cut, with a warning."""
    frozen: bool = True
    vectors: str | None = "glove"
    """BiGRU only: `glove` (GloVe 6B 50d) or None for random word vectors."""
    hidden: int = Field(512, ge=8)
    """BiGRU only: width of each direction."""
    min_count: int = Field(1, ge=1)
    """BiGRU only: words seen less often in the training captions are unknown."""


class ModelConfig(Section):
    """An AVSE model: two encoders, the views, the blocks (letters as in docs/method: V, D, C, P = V·D/C, Q = D/C)."""

    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    num_views: int = Field(2, ge=1, le=16)
    """V: views an image. One view keeps every cell."""
    embed_dim: int = Field(512, ge=8, le=65_536)
    """D: width of one pooled view and of the text."""
    block_width: int = Field(256, ge=1, le=65_536)
    """C: width of a block; must divide D."""
    keep: float = Field(0.8, gt=0, le=1)
    """Share of the grid's cells a view keeps, in training and in evaluation."""
    keep_eval: float | None = Field(None, gt=0, le=1)
    """Another share in evaluation; None: the same."""
    count_prefix: bool = False
    """`official`: K = int(keep·(G+1)), the prefix token counted in, at most G."""
    alpha: float = Field(4.0, ge=0)
    """Radial bias: a cell at d cells from the centre is drawn with p ∝ exp(-alpha·d)."""
    sampling: Literal["gumbel", "nearest", "uniform", "groups"] = "gumbel"
    """How training views are drawn; evaluation takes the nearest cells around fixed centres. `groups`, in training and
    evaluation: each of V learnt tokens takes the features nearest to it (the supplement's encoder of regions)."""
    pooling: Literal["gpo", "mean"] = "gpo"
    """How tokens become one vector: the learnt operator of VSE∞, or their mean (VSE++)."""
    heads: Literal["avse", "own"] = "avse"
    """`own`: the pooling and projection heads of a dual encoder (CLIP, SigLIP) in place of ours."""
    dropout: float = Field(0.2, ge=0, lt=1)
    """On the text encoder's output."""
    image_dropout: float = Field(0.0, ge=0, lt=1)
    """On the image encoder's output."""
    masked_batch_norm: bool = True
    """The text head's batch norm counts real tokens only; the authors' also counts the padding."""

    @model_validator(mode="after")
    def _blocks_divide(self) -> ModelConfig:
        if self.heads == "avse":  # the width of a pair is known once it is opened
            self.check_blocks()
        return self

    def check_blocks(self) -> None:
        """Raise ConfigError unless C divides D."""
        if self.embed_dim % self.block_width:
            near = [c for c in range(1, self.embed_dim + 1) if self.embed_dim % c == 0]
            best = sorted(near, key=lambda c: abs(c - self.block_width))[:3]
            raise ConfigError(
                f"block_width {self.block_width} does not divide embed_dim {self.embed_dim}; "
                f"the nearest widths that do are {', '.join(map(str, best))}"
            )

    @model_validator(mode="after")
    def _views_can_be_chosen(self) -> ModelConfig:
        if self.num_views > 1 and self.image_encoder.source == "regions" and self.sampling != "groups":
            raise ValueError(
                f"regions have no grid to draw {self.num_views} views on by sampling {self.sampling!r}: set "
                "model.sampling=groups, or model.num_views=1"
            )
        if self.num_views > 1 and self.sampling == "groups" and self.image_encoder.sampling_stage == "input":
            raise ValueError(
                "sampling 'groups' chooses by features, which are not there before an encoder's blocks: set "
                "model.image_encoder.sampling_stage=output"
            )
        return self

    @property
    def num_image_blocks(self) -> int:
        """P = V·D/C."""
        return self.num_views * self.embed_dim // self.block_width

    @property
    def num_text_blocks(self) -> int:
        """Q = D/C."""
        return self.embed_dim // self.block_width


class DataConfig(Section):
    """Which pairs to read."""

    source: str | None = None
    """A data set's folder, the file that marks its layout, or flickr30k, coco, flickr30k-regions, coco-regions."""
    root: str | None = None
    """The picture folder, where it is not beside the caption file."""
    max_train_images: int | None = Field(None, ge=1)
    """At most so many training pictures, the first by hash of their id."""
    max_val_images: int | None = Field(None, ge=2)
    """At most so many validation pictures, likewise."""
    cache: str | None = None
    """Folder of the grids of frozen encoders; None: `.cache/avse` where grids can be cached."""
    leaks: Literal["warn", "drop", "error", "ignore"] = "warn"
    """What to do about training pictures that stand, the same or nearly, in validation or test: say so, leave them
    out, stop, or do not look."""
    shards: str | None = None
    """Training pairs from webdataset shards, streamed: a folder of .tar files or a pattern such as
    "train-{000000..000099}.tar"; validation still comes from `source`."""
    shuffle_buffer: int = Field(1000, ge=1)
    """Shards: samples that a reader holds and draws the next one from."""


class TrainConfig(Section):
    """How a model is trained: the defaults did best on little data (docs/log.md), `official` has the authors'."""

    epochs: int = Field(12, ge=1)
    batch_size: int = Field(128, ge=2)
    lr: float = Field(2e-3, gt=0)
    """Learning rate of the heads."""
    encoder_lr: float = Field(5e-5, gt=0)
    """Learning rate of encoders that are not frozen."""
    weight_decay: float = Field(1e-4, ge=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    step_epochs: tuple[int, ...] = (15,)
    """`step`: epochs at whose start the rates are multiplied by step_factor."""
    step_factor: float = Field(0.1, gt=0, lt=1)
    warmup_steps: int = Field(0, ge=0)
    """Steps of linear warm-up of the learning rates."""
    objective: Literal["hinge", "infonce"] = "infonce"
    margin: float = Field(0.2, ge=0)
    score_scale: Literal["sum", "mean"] = "mean"
    """Objective on S itself, or on S / Q: then margin and temperature mean the same whatever the number of blocks."""
    hard_negative_start_epoch: int = Field(1, ge=0)
    """Hinge: epochs before this one use all negatives, then the hardest (0-based)."""
    infonce_warmup_epochs: int = Field(0, ge=0)
    """Hinge: the first so many epochs use InfoNCE instead."""
    temperature: float = Field(0.1, gt=0)
    learn_temperature: bool = False
    decorrelation_weight: float = Field(0.0, ge=0)
    """Weight of L_reg between the views."""
    decorrelation_form: Literal["correct", "official"] = "correct"
    off_diagonal_weight: float = Field(0.005, ge=0)
    """Lambda of L_reg."""
    clip_norm: float | None = Field(2.0, gt=0)
    """Gradient norm after unscaling; None: no clipping."""
    epoch_of: Literal["images", "pairs"] = "images"
    """An epoch shows each image once with one random caption of its own, or every pair."""
    size_augment: float = Field(0.0, ge=0, lt=1)
    """Up to this share of a view's cells is dropped at random (never a prefix token)."""
    word_augment: bool = False
    """Words masked, replaced or dropped at 20 % (BERT family, not frozen)."""
    image_augment: bool = False
    """Random crop and flip (encoders that read pixels, so never with cached grids)."""
    color_augment: float = Field(0.0, ge=0, le=1)
    """With image_augment: brightness, contrast and saturation change by up to this share, hue by a quarter of it."""
    frozen_epochs: int = Field(0, ge=0)
    """Encoders that are trained stay as they are for the first so many epochs."""
    patience: int | None = Field(None, ge=1)
    """Stop after so many epochs in a row without a better validation rSum; None: never."""
    chunk_size: int | None = Field(None, ge=1)
    """Pairs that the trained encoders see at a time (cached embeddings): the memory is a chunk's, the negatives are
    the whole batch's. None: the whole batch at once."""
    gradient_checkpointing: bool = False
    """Compute the blocks' activations again in the backward pass in the place of keeping them (transformers)."""
    compile: bool = False
    """Compile the encoders that are trained (torch.compile); pays only in long trainings, mostly on a GPU."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Autocast of the forward pass; fp16 scales the loss."""
    max_nan_steps: int = Field(5, ge=0)
    """Steps in a row with a non-finite loss or gradient that are skipped before training stops with an error."""
    on_collapse: Literal["warn", "all_negatives"] = "warn"
    """When every embedding becomes the same: say so, or also take all negatives for a while (hinge)."""
    checkpoint_minutes: float = Field(10.0, ge=0)
    """Longest time between two checkpoints; 0: one after every step. The end of an epoch is always one."""
    tensorboard: bool = False
    """Write curves for TensorBoard too (extra `tensorboard`)."""
    workers: int = Field(2, ge=0)
    """Threads that decode pictures."""
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _colours_are_of_pictures(self) -> TrainConfig:
        if self.color_augment and not self.image_augment:
            raise ValueError(
                f"color_augment {self.color_augment:g} changes pictures that are read anew each time: set "
                "train.image_augment=true too, or color_augment=0"
            )
        return self


class Recipe(Section):
    """A whole experiment: settings, where they come from, and what the literature reports for it."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    init_from: str | None = None
    """Start from this folder: a dual encoder of transformers (CLIP, SigLIP), or a model that avse saved."""
    ensemble: int = Field(1, ge=1, le=16)
    """Models trained with seeds of their own, whose similarities are averaged."""
    settings_from: str = ""
    """Source of the settings."""
    expected: dict[str, float] = {}
    """Figures reported elsewhere, such as rsum or i2t_r1; never produced here unless `reproduced` says so."""
    expected_from: str = ""
    """Source of `expected`."""
    reproduced: str = "not run"
    """`not run`, or where the figures of a run with this recipe stand."""


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "avse": {},
    # The authors' code: table at the end of docs/method.
    "official": {
        "model": {
            "embed_dim": 1024,
            "block_width": 256,
            "keep_eval": 0.9,
            "count_prefix": True,
            "sampling": "nearest",
            "masked_batch_norm": False,
            "image_encoder": {"sampling_stage": "input", "frozen": False, "final_norm": False, "pixels": "official"},
            "text_encoder": {"frozen": False},
        },
        "train": {
            "epochs": 30,
            "epoch_of": "pairs",
            "lr": 2e-4,
            "encoder_lr": 2e-5,
            "schedule": "step",
            "step_epochs": (9, 15, 20, 25),
            "step_factor": 0.3,
            "objective": "hinge",
            "score_scale": "sum",
            "margin": 0.2,
            "size_augment": 0.2,
            "word_augment": True,
            "image_augment": True,
            "decorrelation_form": "official",
            "off_diagonal_weight": 0.0051,
            "decorrelation_weight": 1.0,
        },
    },
    # Baselines: one view, cosine; mean pooling with hardest negatives (VSE++), then GPO.
    "vse_plus_plus": {
        "model": {"num_views": 1, "block_width": "embed_dim", "pooling": "mean"},
        "train": {"objective": "hinge", "decorrelation_weight": 0.0},
    },
    "vse_infinity": {
        "model": {"num_views": 1, "block_width": "embed_dim"},
        "train": {"objective": "hinge", "decorrelation_weight": 0.0},
    },
    # As wide as AVSE's image side: D becomes V·D. The objective stays the recipe's.
    "vse_infinity_wide": {
        "model": {"num_views": 1, "embed_dim": "num_views * embed_dim", "block_width": "embed_dim"},
        "train": {"decorrelation_weight": 0.0},
    },
    "infonce": {
        "model": {"num_views": 1, "block_width": "embed_dim"},
        "train": {"objective": "infonce", "decorrelation_weight": 0.0},
    },
}


def apply_preset(recipe: Recipe, name: str) -> Recipe:
    """Change a recipe into one of `PRESETS`; widths given as words are computed from the recipe's own."""
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}{_nearest(name, list(PRESETS))}")
    model = recipe.model
    words = {"embed_dim": model.embed_dim, "num_views * embed_dim": model.num_views * model.embed_dim}
    changes = {section: dict(values) for section, values in PRESETS[name].items()}
    widths = changes.get("model", {})
    for key in ("embed_dim", "block_width"):
        if isinstance(widths.get(key), str):
            chosen = widths.get("embed_dim", model.embed_dim)
            widths[key] = chosen if key == "block_width" else words[widths[key]]
    return parse(Recipe, _merge(recipe.model_dump(), changes))


def load_recipe(
    path_or_name: str | Path | None = None, overrides: list[str] | None = None, preset: str | None = None
) -> Recipe:
    """Read a recipe: the YAML file or shipped recipe, changed into a preset, then by `section.key=value` overrides.

    Raises:
        ConfigError: No such recipe or preset, text that is not YAML, or a setting that is wrong or unknown.
    """
    values = {} if path_or_name is None else _with_base(_read_recipe(_find_recipe(path_or_name)))
    changes = _asked(overrides or [])
    if preset is not None:
        values = apply_preset(_alone(path_or_name, values), preset).model_dump()
        asked = changes.get("model")
        if PRESETS[preset].get("model", {}).get("block_width") == "embed_dim" and isinstance(asked, dict):
            asked.setdefault("block_width", asked.get("embed_dim", values["model"]["block_width"]))
    try:
        recipe: Recipe = parse(Recipe, _merge(values, changes))
    except ConfigError:
        _alone(path_or_name, values)
        raise
    image = recipe.model.image_encoder
    if preset is not None and image.sampling_stage == "input" and image.source == "efficientnet-lite0":
        raise ConfigError(
            f"preset {preset!r} samples views before an encoder's blocks, which {image.source!r} has not: give the "
            "folders of a ViT and a BERT, as model.image_encoder.source=FOLDER and model.text_encoder.source=FOLDER"
        )
    return recipe


def change(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """Return a recipe with `section.key=value` settings changed; ConfigError where they do not exist or fit."""
    changed: Recipe = parse(Recipe, _merge(recipe.model_dump(), _asked(overrides)))
    return changed


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    names = [path.name for path in (resources.files("avse") / "recipes").iterdir()]
    return sorted(name[: -len(".yaml")] for name in names if name.endswith(".yaml"))


def parse(section: type[Any], values: dict[str, Any]) -> Any:
    """Build a section from plain values; errors name the key, the value, the limit and the nearest valid name."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        told = [_explain(section, item) for item in error.errors()]
        raise ConfigError("; ".join([*told[:8], *[f"and {len(told) - 8} more"] * (len(told) > 8)])) from None


def to_yaml(section: BaseModel) -> str:
    """Write a section as YAML; `parse` reads it back."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False)


def _explain(section: type[BaseModel], item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    where = ".".join(location) if location else section.__name__
    if item["type"] == "invalid_key":
        inside = f" in {'.'.join(location[:-1])}" if location[:-1] else ""
        name = next(iter(section.model_fields))
        return f"key {item['input']!r:.200}{inside} is no name: names are text, such as {name}"
    if item["type"] == "extra_forbidden":
        owner: Any = section
        for part in location[:-1]:
            owner = owner.model_fields[part].annotation
        return f"unknown key {where!r:.200}{_nearest(location[-1], list(owner.model_fields))}"
    if item["type"] == "value_error":
        return f"{where}: {item['ctx']['error']!s:.200}"
    return f"{where}: {item['msg']}, got {item['input']!r:.200}"


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(names))}"


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        values = load_yaml(path.read_text(encoding="utf-8")) or {}
    except ValueError as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of sections, found {type(values).__name__}")
    return values


_OF_ONE_RECIPE = ("expected", "expected_from", "reproduced")
"""Figures belong to the recipe that names them, not to those that stand on it."""


def _with_base(values: dict[str, Any], depth: int = 0) -> dict[str, Any]:
    """Lay a recipe over the one that its `base` names."""
    if "base" not in values:
        return values
    name = values.pop("base")
    if depth == 8:
        raise ConfigError(f"base {name!r}: recipes stand on one another in a circle")
    below = _with_base(_read_recipe(_find_recipe(name)), depth + 1)
    below = {key: value for key, value in below.items() if key not in _OF_ONE_RECIPE}
    return _merge(below, values)


def _alone(path_or_name: str | Path | None, values: dict[str, Any]) -> Any:
    """Build a recipe from what its file says; what is wrong then is told with the file's name."""
    try:
        return parse(Recipe, values)
    except ConfigError as error:
        raise ConfigError(f"{path_or_name}: {error}") from None


def _asked(overrides: Iterable[str]) -> dict[str, Any]:
    return reduce(_merge, map(_read_override, overrides), {})


def _read_override(override: str) -> dict[str, Any]:
    key, sep, text = override.partition("=")
    if not sep:
        raise ConfigError(f"--set {override!r:.200}: expected section.key=value, such as train.lr=1e-4")
    try:
        tree = load_yaml(text)
    except ValueError as error:
        raise ConfigError(f"--set {override!r:.200}: the value is not YAML: {error}") from error
    if isinstance(tree, str):
        tree = _number(tree)
    for part in reversed(key.strip().split(".")):
        tree = {part: tree}
    return dict(tree)


def _find_recipe(path_or_name: str | Path) -> Path:
    path = Path(path_or_name)
    if path.is_file():
        return path
    shipped = Path(str(resources.files("avse") / "recipes" / f"{path_or_name}.yaml"))
    if path.suffix == "" and shipped.is_file():
        return shipped
    close = difflib.get_close_matches(str(path_or_name), shipped_recipes(), n=1, cutoff=0.5)
    near = f"; did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"no recipe {str(path_or_name)!r}: neither a file nor a shipped recipe (avse recipes lists them){near}"
    )


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _number(text: str) -> Any:
    """Read `1e-4`, which YAML 1.1 takes for a word."""
    try:
        return float(text)
    except ValueError:
        return text
