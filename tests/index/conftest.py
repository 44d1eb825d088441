"""A small encoder, a brute-force oracle and the stores, for every test of the index."""

from __future__ import annotations

import sys
import types
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from avse.images import read_image
from avse.index import Index


class ColourEncoder:
    """Pictures by the mean colours of their quarters, sentences by their words' checksums; P, Q, C = 4, 2, 8."""

    num_image_blocks, num_text_blocks, block_width = 4, 2, 8

    def __init__(self, seed: int = 0, folder: Path | None = None) -> None:
        self.fingerprint, self.folder, self.largest_batch = f"colours-{seed}", folder, 0
        self._weights = np.random.default_rng(seed).standard_normal((13, 32))

    def encode_images(self, images: Sequence[Any]) -> np.ndarray:
        self.largest_batch = max(self.largest_batch, len(images))
        small = [np.asarray(read_image(image).resize((2, 2), Image.Resampling.BOX)) / 255 for image in images]
        rows = np.array([np.append(pixels.ravel(), 1.0) @ self._weights for pixels in small])
        return self.unit(rows.reshape(len(images), 4, 8))

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        rows = [
            sum(np.random.default_rng(zlib.crc32(word.encode())).standard_normal(16) for word in text.split())
            for text in texts
        ]
        return self.unit(np.array(rows).reshape(len(texts), 2, 8))

    def to(self, device: str) -> None:
        self.device = device

    @staticmethod
    def unit(rows: np.ndarray) -> np.ndarray:
        return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def naive_score(image: np.ndarray, text: np.ndarray) -> float:
    """S(I, T) = Σ_j max_i <v_i, t_j>, by loops in float64."""
    return sum(max(float(np.dot(v.astype(float), t.astype(float))) for v in image) for t in text)


@pytest.fixture
def encoder() -> ColourEncoder:
    return ColourEncoder()


@pytest.fixture
def other_encoder() -> ColourEncoder:
    return ColourEncoder(seed=1)


@pytest.fixture(params=["memory", "embedded"])
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Place(NamedTuple):
    """Somewhere an index can be made: a folder in one store or another, or a (local-mode) server's collection."""

    kind: str
    path: Any
    arguments: dict[str, Any]

    def create(self, encoder: Any, **more: Any) -> Index:
        return Index.create(self.path, encoder, **{**self.arguments, **more})

    def open(self, *model: Any) -> Index:
        return Index.open(self.path, *model)


@pytest.fixture
def local_server(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let every qdrant:// URL lead to one client in local mode, which outlives the indexes that close it."""
    import qdrant_client

    from avse.index import server

    client = qdrant_client.QdrantClient(":memory:")
    monkeypatch.setattr(client, "close", lambda: None)
    monkeypatch.setattr(server, "connect", lambda address: client)
    return client


@pytest.fixture(params=["memory", "embedded", "sharded", "server"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "server":
        request.getfixturevalue("local_server")
        return Place("server", "qdrant://localhost/photos", {})
    arguments = {"store": "embedded", "shards": 3} if request.param == "sharded" else {"store": request.param}
    return Place(request.param, tmp_path / "i.avse", arguments)


@pytest.fixture
def score() -> Callable[[np.ndarray, np.ndarray], float]:
    return naive_score


@pytest.fixture
def unit() -> Callable[..., np.ndarray]:
    """Random unit blocks: ``unit(n, P, C, seed=0)``."""

    def make(*shape: int, seed: int = 0) -> np.ndarray:
        return ColourEncoder.unit(np.random.default_rng(seed).standard_normal(shape))

    return make


@pytest.fixture
def index(tmp_path: Path, encoder: ColourEncoder, store: str) -> Any:
    with Index.create(tmp_path / "i.avse", encoder, store=store) as made:
        yield made


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight plain pictures in three folders, one broken, one no picture at all."""
    folder = tmp_path / "pictures"
    for number, name in enumerate(["a.png", "b.jpg", "2019/c.png", "2019/d ü.png", "2020/e.png", "2020/f.png"]):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 10), (40 * number, 255 - 40 * number, 90)).save(path)
    whole = (folder / "b.jpg").read_bytes()
    (folder / "2019" / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    return folder


@pytest.fixture
def saved_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that avse.start:open_model opens as a `ColourEncoder`."""
    folder = tmp_path / "runs" / "model"
    folder.mkdir(parents=True)
    module: Any = types.ModuleType("avse.start")
    module.open_model = lambda path: ColourEncoder(folder=Path(path))
    monkeypatch.setitem(sys.modules, "avse.start", module)
    return folder
