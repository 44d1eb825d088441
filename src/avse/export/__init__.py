"""Models and indexes for other tools: ONNX, sentence-transformers, Parquet, Qdrant, the Hugging Face layout."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

from avse import files

ONNX, SENTENCE, HUB = "onnx", "sentence-transformers", "huggingface"
"""Kinds of an exported folder, as its manifest names them."""


def kind_of(folder: str | Path) -> str | None:
    """Return which kind of export a folder is by its manifest; None for a model, an index or anything else."""
    try:
        kind = json.loads((Path(folder) / files.MANIFEST).read_text("utf-8"))["kind"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return kind if kind in (ONNX, SENTENCE, HUB) else None


def check_apart(source: str | Path, out: str | Path) -> None:
    """Raise ValueError where `out` is what is exported, lies in it or has it inside."""
    one, other = Path(source).resolve(), Path(out).resolve()
    if one == other or one in other.parents or other in one.parents:
        raise ValueError(f"{out} is {source}, which is exported, or one lies in the other: choose a place beside it")


def check_folder(out: str | Path, kind: str, force: bool, source: str | Path | None = None) -> None:
    """Refuse a folder that may not be written, before the work is done.

    Args:
        out: the folder.
        kind: what shall be written there.
        force: replace an export of the same kind; nothing else is ever replaced.
        source: the folder that is exported, if there is one.

    Raises:
        FileExistsError: `out` is there and not `force`, or it is something else than an export of this kind.
        ValueError: as `check_apart`.
    """
    if source is not None:
        check_apart(source, out)
    if not files.is_taken(out):
        return
    if kind_of(out) != kind:
        raise FileExistsError(f"{out} is there already and no export of kind {kind}: choose another name")
    if not force:
        edited = " (its README.md, edited or not, is then written anew)" if kind != ONNX else ""
        raise FileExistsError(f"{out} is there already: choose another name or --force{edited}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let other libraries not speak of what a user cannot change; what fails is raised."""
    former = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(former)
