"""The loaders of an index and of the server that stands before it."""

from __future__ import annotations

import json
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from robust_loaders import Build, ColourEncoder, Fuzzed, loader

PAYLOADS = [
    {"n": n, "word": f"wörd {n}", "tags": ["a", n], "path": f"{n}.png", "bytes": 3, "sha256": f"{n:064x}"}
    for n in range(5)
]
IDS = [f"{n}.png" for n in range(5)]


def unit(*shape: int) -> np.ndarray:
    rows: np.ndarray = ColourEncoder.unit(np.random.default_rng(0).standard_normal(shape))
    return rows


def fill(place: Path, **more: Any) -> Path:
    """Make an index of five entries, closed."""
    from avse.index import Index

    with Index.create(place, ColourEncoder(), **more) as index:
        index.add_embeddings(IDS, unit(5, 4, 8), PAYLOADS)
    return place


def use(place: Path) -> object:
    """Open, verify, list and search an index."""
    from avse.index import Index

    with Index.open(place, ColourEncoder()) as index:
        said = list(index.verify())
        list(index.entries())
        index.facts()
        shape = index._manifest.layout.query
        query = unit(*shape) if shape[0] * shape[1] < 1 << 20 else unit(2, 8)
        return said, index.search(embedding=query, where="n >= 0 or word = a or tags = a", k=3)


def restore(whole: Path, place: Path) -> None:
    """Put a copy of a folder in place of another, holes and all."""
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run(["cp", "-a", "--sparse=always", str(whole), str(place)], check=True)


def _index_file(name: str, kind: str, store: str) -> Build:
    def build(place: Path, _: Any) -> Fuzzed:
        whole = fill(place.with_name("whole"), store=store)
        restore(whole, place)
        (found,) = whole.rglob(name)
        target = place / found.relative_to(whole)

        def load(data: bytes) -> object:
            restore(whole, place)
            target.write_bytes(data)
            return use(place)

        return Fuzzed(None, load, kind, found.read_bytes(), names=(place.name,))

    return build


for _name, _kind in (("index.json", "json"), ("state.json", "json"), ("blocks.f32", "bytes"), ("rows.jsonl", "bytes")):
    loader(f"memory index: {_name}", ms=12)(_index_file(_name, _kind, "memory"))
for _name, _kind in (("closed.json", "json"), ("edge_config.json", "json"), ("segment.json", "json")):
    loader(f"embedded index: {_name}", ms=20)(_index_file(_name, _kind, "embedded"))


@loader("memory index: rows.jsonl with right checksums", ms=12)
def _rows(place: Path, _: Any) -> Fuzzed:
    whole = fill(place.with_name("whole"), store="memory")
    lines = [line[9:] for line in (whole / "memory/rows.jsonl").read_bytes().splitlines()]

    def load(data: bytes) -> object:
        restore(whole, place)
        text = b"".join(b"%08x %s\n" % (zlib.crc32(line), line) for line in data.split(b"\n"))
        (place / "memory/rows.jsonl").write_bytes(text)
        state = json.loads((place / "memory/state.json").read_text())
        (place / "memory/state.json").write_text(json.dumps({**state, "journal_bytes": len(text)}))
        return use(place)

    return Fuzzed(None, load, seed=b"\n".join(lines), names=(place.name,))


@loader("memory index: segments.json", ms=12)
def _segments(place: Path, _: Any) -> Fuzzed:
    from avse.index.segments import Segments

    place.mkdir(parents=True)
    made = Segments(place / "rows.i8", place / "segments.json", (1, 4))
    made.extend(np.repeat(unit(1, 1, 4), 8192, 0))

    def load() -> object:
        kept = Segments(place / "rows.i8", place / "segments.json", (1, 4))
        return list(kept.verify()), kept.scan(unit(2, 4), "images", 8192)

    return Fuzzed(place / "segments.json", load, "json")


@loader("journal.sqlite", ms=6)
def _journal(place: Path, _: Any) -> Fuzzed:
    from contextlib import closing

    from avse.index.journal import Journal, Seen

    place.mkdir(parents=True)
    with closing(Journal(place / "journal.sqlite")) as journal:
        for n in range(5):
            journal.hold(f"{n:064x}", IDS[n])
            journal.put(Seen(IDS[n], 3, 4, f"{n:064x}"))
        journal.commit()

    def load() -> object:
        pages = [list(zip(IDS, PAYLOADS))]
        with closing(Journal(place / "journal.sqlite", anew=False)) as kept:
            said = list(kept.check(pages)), list(kept.rows("")), kept.dirty(), kept.count()
        with closing(Journal(place / "journal.sqlite")) as kept:
            kept.rebuild(pages)
        return said

    return Fuzzed(place / "journal.sqlite", load)


@loader("where", ms=0.3)
def _where(place: Path, _: Any) -> Fuzzed:
    import qdrant_edge as engine

    from avse.index.embedded import EmbeddedStore
    from avse.index.points import to_filter
    from avse.index.where import fields, matches, parse

    assert engine

    def load(data: bytes) -> object:
        node = parse(data.decode("utf-8", "replace"))
        to_filter(node, EmbeddedStore.kit)
        return fields(node), [matches(node, payload) for payload in PAYLOADS]

    seed = b"year >= 2019 and (folder = 'a b' or not name in (\"c\", d, 2019-06-01)) and t < '2019-06-01T12:30:00Z'"
    return Fuzzed(None, load, seed=seed, names=())


BODY = {"query": "a dog", "where": "n > 1", "k": 3, "image": "iVBORw0KGgo="}


@loader("HTTP: /api/search", ms=12)
def _search(place: Path, request: Any) -> Fuzzed:
    return Fuzzed(None, _asking(place, request, "application/json"), "json", json.dumps(BODY).encode(), names=())


@loader("HTTP: a form", ms=12)
def _form(place: Path, request: Any) -> Fuzzed:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in BODY.items()]
    file = '--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\nContent-Type: image/png\r\n\r\nxyz\r\n'
    seed = "".join([*parts[:3], file, "--b--\r\n"]).encode()
    return Fuzzed(None, _asking(place, request, "multipart/form-data; boundary=b"), seed=seed, names=())


def _asking(place: Path, request: Any, kind: str) -> Any:
    from starlette.testclient import TestClient

    from avse.index import Index
    from avse.serve import create_app

    fill(place, store="memory")
    index = Index.open(place, ColourEncoder())
    request.addfinalizer(index.close)
    client = TestClient(create_app(index), base_url="http://localhost", raise_server_exceptions=True)
    client.__enter__()
    request.addfinalizer(lambda: client.__exit__(None, None, None))

    def load(data: bytes) -> object:
        answer = client.post("/api/search", content=data, headers={"content-type": kind})
        assert answer.status_code == 200 or (400 <= answer.status_code < 500 and answer.json()["detail"]), answer.text
        assert b"Traceback" not in answer.content and str(place).encode() not in answer.content
        return answer

    return load
