"""What a loader of avse is to a fuzzer: a small valid file to begin from; `LOADERS` has one line for each."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

_spec = importlib.util.spec_from_file_location("index_kit", Path(__file__).parent.parent / "index" / "conftest.py")
assert _spec and _spec.loader
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
ColourEncoder = _module.ColourEncoder
Family = tuple[type[Exception], ...]


class Fuzzed(NamedTuple):
    """A valid file, how it is read, and what may be said of it."""

    path: Path | None
    """Where the mutated bytes are written before each load; None: `load` takes them."""
    load: Callable[..., object]
    kind: str = "bytes"
    seed: bytes | None = None
    """What is mutated, where that is not the file itself."""
    wrap: Callable[[bytes], bytes] = bytes
    """From what is mutated to the file's content: checksums made right, as one who means harm would."""
    names: tuple[str, ...] | None = None
    family: Family = (ValueError, OSError)


class Loader(NamedTuple):
    """A line of the table: how it is built, and the milliseconds of a load, by which time is shared out."""

    build: Callable[[Path, Any], Fuzzed]
    ms: float


LOADERS: dict[str, Loader] = {}
Build = Callable[[Path, Any], Fuzzed]


def loader(name: str, ms: float = 2.0) -> Callable[[Build], Build]:
    def keep(build: Build) -> Build:
        LOADERS[name] = Loader(build, ms)
        return build

    return keep


def picture(path: Path, shade: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def write_json(path: Path, said: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said), "utf-8")
    return path
