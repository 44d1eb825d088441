"""A model from what a folder holds: a saved model of avse, or a CLIP, SigLIP or SigLIP 2 pair of transformers.

What every verb that takes a model folder opens, and where a training starts. Knows no data set.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from avse.config import ModelConfig, Recipe
from avse.encoders.dual import FREE, fit_config, pair_type
from avse.encoders.hub import local_folder
from avse.model import AVSE

log = logging.getLogger(__name__)

_RATES = frozenset({"dropout", "image_dropout", "masked_batch_norm"})


def open_model(folder: str | Path) -> AVSE:
    """Load a saved model, or a pair as it is: one view, its own width, processor and padding.

    Raises:
        CheckpointError, EncoderError: It is neither, or not whole.
        ManifestError: A file of a saved model is missing or was changed.
    """
    if not pair_type(folder):
        return AVSE.from_pretrained(folder)
    model = AVSE.from_dual_encoder(folder)
    log.info(
        "%s is a pair of transformers (%s), taken as it is: one view of %d px, cosine of %d",
        folder,
        pair_type(folder),
        model.image_encoder.pixels.size[0],
        model.block_width,
    )
    return model


def build_model(recipe: Recipe, captions: Sequence[str] | None = None, *, allow_download: bool = False) -> AVSE:
    """Build the model that a recipe trains, from its `init_from` where it has one.

    Of a pair or a saved model the recipe chooses views, blocks, where they are sampled and what is frozen; the rest is
    fixed by the weights. `facts["init_from"]` holds the folder's name and the start's fingerprint.

    Args:
        recipe: the experiment.
        captions: training captions, from which a BiGRU's vocabulary is built.
        allow_download: fetch hub ids that are not on this machine.

    Raises:
        ConfigError: The recipe asks for what the weights cannot give; all such settings are named.
        CheckpointError, EncoderError: `init_from` is neither kind of folder, or not whole.
    """
    if recipe.init_from is None:
        return AVSE(recipe.model, captions=captions, allow_download=allow_download)
    folder = local_folder(recipe.init_from, allow_download)
    if pair_type(folder):
        pair = {"source": recipe.init_from}
        sections = {name: getattr(recipe.model, name).model_copy(update=pair) for name in _SIDES}
        model = AVSE(recipe.model.model_copy(update={"heads": "own", **sections}), allow_download=allow_download)
    else:
        model = AVSE.from_pretrained(folder, adapt=lambda saved: _adapted(recipe.model, saved, folder))
    kept = {name: value for name, value in model.facts.items() if name.startswith("logit_")}  # others were the start's
    model.facts = {**kept, "init_from": f"{folder.resolve().name}@{model.fingerprint[:12]}"}
    return model


_SIDES = ("image_encoder", "text_encoder")


def _adapted(wanted: ModelConfig, saved: ModelConfig, folder: Path) -> ModelConfig:
    """Return what is wanted of a saved model: a pair's recipe names no encoders, any other must name the saved ones."""
    own = saved.heads == "own"
    values = saved.model_dump()
    for side in _SIDES:
        values |= {f"{side}.{name}": value for name, value in values.pop(side).items()}
    sources = {f"{side}.source" for side in _SIDES}
    free = FREE - sources - {"image_encoder.resolution"}
    if "groups" in (wanted.sampling, saved.sampling):  # their tokens are learnt, one a view
        free -= {"sampling", "num_views"}
    return fit_config(wanted, values, free if own else free | _RATES, str(folder), strict=not own)
