"""`avse info`: versions and abilities of this machine, or what a model or an index is."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from avse.cli import common

if TYPE_CHECKING:
    from avse.model import AVSE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", nargs="?", help="a model folder or an index")
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print facts, one a line, or one JSON object."""
    facts = _about(args.path) if args.path else _machine()
    if args.json:
        common.emit(facts)
    else:
        width = max(map(len, facts))
        print("\n".join(f"{name:{width}}  {value}" for name, value in facts.items()))
    return 0


def _machine() -> dict[str, object]:
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from avse import __version__
    from avse.features import resolve_precision

    facts: dict[str, object] = {"avse": __version__, "python": platform.python_version()}
    for package in (
        "torch",
        "transformers",
        "numpy",
        "pillow",
        "numkong",
        "qdrant-edge-py",
        "qdrant-client",
        "ray",
        "matplotlib",
    ):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["cores"] = os.cpu_count()
    facts["threads"] = torch.get_num_threads()
    facts["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    facts["encoding precision"] = resolve_precision("cuda" if torch.cuda.is_available() else "cpu", "auto")
    return facts


def _about(path: str) -> dict[str, object]:
    from pathlib import Path

    if "://" in path or (Path(path) / "index.json").is_file():
        from avse.index import Index

        with Index.open(path) as index:
            return {"index": path, **index.facts()}
    from avse.start import open_model

    model = open_model(path)
    config = model.config
    return {
        "model": path,
        "image encoder": f"{config.image_encoder.source} at {model.image_encoder.pixels.size[0]} px",
        "text encoder": f"{config.text_encoder.source}, at most {model.text_encoder.max_length} tokens",
        "views V": config.num_views,
        "image blocks P": model.num_image_blocks,
        "text blocks Q": model.num_text_blocks,
        "block width C": model.block_width,
        "parameters": sum(p.numel() for p in model.parameters()),
        "fingerprint": model.fingerprint,
        "weak answers": _weak(model),
    }


def _weak(model: AVSE) -> str:
    """Say from which score on answers count, in the gallery's size that the calibration has seen most of."""
    learnt = model.calibration
    if learnt is None:
        return "not calibrated: avse evaluate MODEL DATA --split val --calibrate"
    size = learnt.t2i.sizes[-1]
    return (
        f"below {learnt.threshold(size):.3f} among {size} pictures; {learnt.false_accepts:.2g} of sentences without an "
        f"answer pass, {learnt.t2i.recall:.2g} of true pairs (split {learnt.facts.get('split', '?')} of "
        f"{learnt.facts.get('dataset', '?')})"
    )
