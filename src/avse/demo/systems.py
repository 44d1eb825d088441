"""The systems that the demo compares: AVSE and three baselines, trained alike and measured on the same pairs.

Every system is a shipped recipe of the same parts: the same encoders, cached features and number of epochs. Settings
were chosen on the validation split with the same number of trials each (docs/log.md).
"""

from __future__ import annotations

from avse.config import Recipe, load_recipe

SYSTEMS = ("avse", "vse_infinity", "vse_infinity_wide", "infonce")

RECIPES = {
    "openclipart": {
        "avse": "demo",
        "vse_infinity": "demo-vse-infinity",
        "vse_infinity_wide": "demo-vse-infinity-wide",
        "infonce": "demo-infonce",
    },
    "scenes": {
        "avse": "scenes",
        "vse_infinity": "demo-vse-infinity",
        "vse_infinity_wide": "scenes-vse-infinity-wide",
        "infonce": "demo-infonce",
    },
}
"""Data set -> system -> shipped recipe. Pictures of parts want more and smaller views than clip art."""

TITLES = {
    "avse": "AVSE: {V} views, {P} x {C} image and {Q} x {C} text blocks, {objective}",
    "vse_infinity": "VSE∞: one view, cosine of {D}, {objective}",
    "vse_infinity_wide": "VSE∞ as wide as AVSE's image side: cosine of {D}, {objective}",
    "infonce": "CLIP-style: one view, cosine of {D}, {objective}",
}


def recipe_for(dataset: str, system: str, seed: int, epochs: int | None) -> Recipe:
    """Return a system's recipe for a data set with this seed, and another number of epochs where asked."""
    changes = [f"train.seed={seed}"] + ([] if epochs is None else [f"train.epochs={epochs}"])
    return load_recipe(RECIPES[dataset][system], changes)


def title_of(system: str, recipe: Recipe) -> str:
    """Describe a system by its settings."""
    model, train = recipe.model, recipe.train
    objective = "InfoNCE" if train.objective == "infonce" else "hinge, hardest negatives"
    if train.objective == "hinge" and train.infonce_warmup_epochs:
        objective = f"InfoNCE for {train.infonce_warmup_epochs} epochs, then {objective}"
    return TITLES[system].format(
        V=model.num_views,
        P=model.num_image_blocks,
        Q=model.num_text_blocks,
        C=model.block_width,
        D=model.embed_dim,
        objective=objective,
    )
