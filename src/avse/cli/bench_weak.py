"""`avse bench weak`: the weak flag."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    raise NotImplementedError
