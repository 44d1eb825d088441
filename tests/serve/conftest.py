"""Small indexes and servers over them; what they are made of is in serve_kit."""

from __future__ import annotations

from pathlib import Path

import pytest
from serve_kit import TOKEN, ColourEncoder, paint, running

from avse.index import Index


@pytest.fixture(params=["memory"])
def store(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures in two folders, with noise in them, so that they differ."""
    folder = tmp_path / "photos"
    for number in range(12):
        path = folder / ("sea" if number % 2 else "land") / f"{number:02d} ü.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        paint(path, number)
    return folder


@pytest.fixture
def index(tmp_path: Path, photos: Path, store: str):
    with Index.create(tmp_path / "served.avse", ColourEncoder(), store=store) as made:
        made.add_images(photos, progress=False)
        yield made


@pytest.fixture
def server(index: Index):
    """With a token."""
    with running(index, token=TOKEN) as made:
        yield made


@pytest.fixture
def open_server(index: Index):
    """Without a token: it reads only."""
    with running(index) as made:
        yield made
