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
        ValueError: Neither an index nor a model folder, not even a damaged one.
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
    else:
        print(
            "copy what is named back from a backup, or make the index anew (avse index --force), save the model again",
            file=sys.stderr,
        )
    return 1 if damages else 0


def _damages(path: str) -> Iterator[str]:
    from avse.files import find_damages

    if "://" in path or _is_index(Path(path)):
        yield from _index_damages(path)
    elif _is_model(Path(path)):
        yield from map(str, find_damages(path, foreign=True))
    elif not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such folder")
    else:
        held = [str(one) for one in sorted(Path(path).glob("*")) if _is_index(one) or _is_model(one)]
        inside = f": verify {', '.join(held)} inside it" if held else " (no index.json, no manifest.json)"
        raise ValueError(f"{path} is neither an index nor a model folder of avse{inside}")


def _is_index(path: Path) -> bool:
    """Tell an index, though its manifest be gone."""
    from avse.index import manifest, seal

    return manifest.is_index(path) or (path / seal.NAME).is_file()


def _is_model(path: Path) -> bool:
    """Tell a model's folder, or an export with a manifest, though that be gone."""
    from avse.files import MANIFEST

    return (path / MANIFEST).exists() or (path / "image_encoder" / "encoder.json").is_file()


def _index_damages(path: str) -> Iterator[str]:
    from avse.index import Index, seal
    from avse.index.contract import NotOwnedError

    folder = None if "://" in path else Path(path)
    broken = dict(seal.find_damages(folder)) if folder else {}
    yield from broken.values()
    if folder and not seal.is_sealed(folder):
        print(f"{path} is not sealed (it is open, or its process died): entries alone are checked", file=sys.stderr)
    kept = seal.read(folder) if folder and broken and seal.NAME not in broken else {}
    try:
        with Index.open(path) as index:
            yield from index.verify()
    except OSError as error:
        if folder is None or isinstance(error, NotOwnedError):
            raise
        yield str(error)
    finally:
        if folder and kept and (folder / seal.NAME).is_file():  # or the damage would be sealed in
            seal.leave_damages(folder, kept, broken)
