"""``avse verify``: read an index, or a model folder, from end to end, and name every damage."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from avse.cli.common import add_json, emit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "path", metavar="PATH", help="an index (a folder, or qdrant://host:6333/name) or a model folder"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print each damage on a line, or that all is whole; return 1 for damage.

    Raises:
        ValueError: Neither an index nor a model folder.
        OSError: It cannot be looked at: another process has it, it is read-only, or its server fails.
    """
    damages = 0
    for damage in _damages(args.path):
        damages += 1
        if not args.json:
            print(damage)
        else:
            emit({"path": args.path, "damage": damage})
    if args.json:
        emit({"path": args.path, "whole": not damages, "damages": damages})
    elif not damages:
        print(f"{args.path}: whole")
    return 1 if damages else 0


def _damages(path: str) -> Iterator[str]:
    from avse.files import MANIFEST, find_damages
    from avse.index.manifest import is_index

    if "://" in path or is_index(Path(path)):
        yield from _index_damages(path)
    elif (Path(path) / MANIFEST).exists():
        yield from map(str, find_damages(path, foreign=True))
    else:
        held = [str(one) for one in sorted(Path(path).glob("*")) if is_index(one) or (one / MANIFEST).exists()]
        inside = f": verify {', '.join(held)} inside it" if held else f" (no index.json, no {MANIFEST})"
        raise ValueError(f"{path} is neither an index nor a model folder of avse{inside}")


def _index_damages(path: str) -> Iterator[str]:
    from avse.files import write_bytes
    from avse.index import Index, seal
    from avse.index.contract import NotOwnedError

    folder = None if "://" in path else Path(path)
    broken = list(seal.find_damages(folder)) if folder else []
    yield from broken
    if folder and not seal.is_sealed(folder):
        print(f"{path} is not sealed (it is open, or its process died): entries alone are checked", file=sys.stderr)
    kept = (folder / seal.NAME).read_bytes() if folder and broken and (folder / seal.NAME).is_file() else b""
    try:
        with Index.open(path) as index:
            yield from index.verify()
    except OSError as error:
        if folder is None or isinstance(error, NotOwnedError):
            raise
        yield str(error)
    finally:
        if folder and kept:  # or the damage would be sealed in
            write_bytes(folder / seal.NAME, kept)
