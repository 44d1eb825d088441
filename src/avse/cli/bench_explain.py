"""`avse bench explain`: how faithful explanations are."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    raise NotImplementedError
