"""`avse recipes`: list the shipped recipes, print one in full, or compute what they cost."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from avse.cli import common

if TYPE_CHECKING:
    from avse.config import Recipe

TFLOPS = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", nargs="?", help="print this recipe with every default filled in")
    parser.add_argument(
        "--cost",
        action="store_true",
        help="compute parameters, arithmetic, hours and memory on one GPU (computed from the settings, not measured)",
    )
    parser.add_argument(
        "--tflops",
        type=common.positive_number,
        default=TFLOPS,
        help=f"TFLOP/s that the GPU sustains in training, for --cost (assumed: {TFLOPS:g})",
    )
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print a line a recipe, or one recipe as YAML."""
    from avse.config import load_recipe, shipped_recipes, to_yaml

    if args.name and not args.cost:
        recipe = load_recipe(args.name)
        if args.json:
            common.emit({"name": args.name, **recipe.model_dump(mode="json")})
        else:
            print(to_yaml(recipe), end="")
        return 0
    recipes = {name: load_recipe(name) for name in ([args.name] if args.name else shipped_recipes())}
    lines = [_costs(name, r, args.tflops) if args.cost else _facts(name, r) for name, r in recipes.items()]
    if args.json:
        for line in lines:
            common.emit(line)
        return 0
    heads = [head for head in lines[0] if head != "expected_from"]
    rows = [heads, *([_shown(line[head]) for head in heads] for line in lines)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return 0


def _facts(name: str, recipe: Recipe) -> dict[str, Any]:
    """What a recipe trains, and the figures that the literature has for it."""
    return {
        "name": name,
        "what": _what(recipe),
        "expected": recipe.expected,
        "expected_from": recipe.expected_from,
        "reproduced": recipe.reproduced,
    }


def _what(recipe: Recipe) -> str:
    """Data, encoders and V/D/C in one line."""
    model = recipe.model
    sources = model.image_encoder.source, model.text_encoder.source
    image, text = (source.rstrip("/").rpartition("/")[2] for source in sources)
    if model.heads == "own":
        return (
            f"{recipe.data.source or 'your data'}, a pair given by init_from, V/C {model.num_views}/{model.block_width}"
        )
    if image == "regions":
        image = f"{model.image_encoder.num_regions} regions of {model.image_encoder.width}"
    members = f"{recipe.ensemble} models, " if recipe.ensemble > 1 else ""
    sizes = f"V/D/C {model.num_views}/{model.embed_dim}/{model.block_width}"
    return f"{members}{recipe.data.source or 'your data'}, {image} + {text}, {sizes}"


def _costs(name: str, recipe: Recipe, tflops: float) -> dict[str, Any]:
    """The computed cost in the units of a table; empty where a shape is not known."""
    from avse.cost import cost

    told = cost(recipe)
    return {
        "name": name,
        "million parameters": round(told.parameters / 1e6, 1) if told else None,
        "trained": round(told.trained / 1e6, 1) if told else None,
        "TFLOP a step": round(told.step_flops / 1e12, 2) if told else None,
        "steps": told.steps * recipe.ensemble if told else None,
        "hours": round(told.hours(tflops) * recipe.ensemble, 2) if told else None,
        "images/s": round(recipe.train.batch_size * tflops * 1e12 / told.step_flops) if told else None,
        "GiB": round(told.memory / 2**30, 1) if told else None,
        "how": f"computed, at {tflops:g} TFLOP/s" if told else "not known: its data or an encoder",
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):  # the sum of recalls stands for all figures
        value = ", ".join(f"{key} {figure:.1f}" for key, figure in value.items() if key.endswith("rsum"))
    return "-" if value in (None, "") else f"{value:,}" if isinstance(value, int) else str(value)
