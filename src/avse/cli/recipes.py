"""`avse recipes`: list the shipped recipes, or print one in full."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("name", nargs="?", help="print this recipe with every default filled in")


def run(args: argparse.Namespace) -> int:
    """Print names, or one recipe as YAML."""
    from avse.config import load_recipe, shipped_recipes, to_yaml

    if args.name:
        print(to_yaml(load_recipe(args.name)), end="")
    else:
        print("\n".join(shipped_recipes()))
    return 0
