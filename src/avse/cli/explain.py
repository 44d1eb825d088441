"""`avse explain`: show which part of a picture answered which part of a sentence."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""


def run(args: argparse.Namespace) -> int:
    """Run."""
    raise NotImplementedError
