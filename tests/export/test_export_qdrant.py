"""An index copied to a server, through qdrant-client's local mode: no Qdrant server can be started where this runs."""

import re
import types
from pathlib import Path

import numpy as np
import pytest
import qdrant_client
from index_kit import C, Q, make_index, naive_score, unit

from avse.export.qdrant import send
from avse.index import Index, server

URL = "qdrant://localhost/photos"


@pytest.fixture
def client(monkeypatch):
    """Every qdrant:// URL leads to this one client in local mode, which outlives those who close it."""
    client = qdrant_client.QdrantClient(":memory:")
    monkeypatch.setattr(client, "close", lambda: None)
    monkeypatch.setattr(server, "connect", lambda address: client)
    return client


@pytest.mark.parametrize("store", ["memory", "embedded"])
def test_the_plain_clients_query_ranks_by_s(client, tmp_path, store):
    (tmp_path / "model").mkdir()
    ids, blocks, payloads = make_index(tmp_path / "i.avse", store=store, folder=tmp_path / "model")
    assert send(tmp_path / "i.avse", URL) == {"url": URL, "entries": 59, "vector": "blocks"}
    query = unit(Q, C, seed=1)
    exact = {name: naive_score(image, query) for name, image in zip(ids, blocks)}
    best = sorted(exact, key=exact.get, reverse=True)
    found = client.query_points("photos", query=query.tolist(), using="blocks", limit=10).points
    assert [point.payload["id"] for point in found] == best[:10]
    assert max(abs(point.score - exact[point.payload["id"]]) for point in found) < 1e-5
    models = qdrant_client.models
    late = models.Filter(must=[models.FieldCondition(key="p.year", range=models.Range(gte=2019))])
    found = client.query_points("photos", query=query.tolist(), using="blocks", limit=60, query_filter=late).points
    said = dict(zip(ids, payloads))
    assert [point.payload["id"] for point in found] == [name for name in best if said[name]["year"] >= 2019]
    assert all(point.payload["p"] == said[point.payload["id"]] for point in found)


def test_it_is_an_index_of_avse_too(client, tmp_path):
    (tmp_path / "model").mkdir()
    ids, blocks, payloads = make_index(tmp_path / "i.avse", folder=tmp_path / "model", source=tmp_path)
    send(tmp_path / "i.avse", URL)
    with Index.open(URL) as index:
        assert list(index.verify()) == [] and index.source == tmp_path.resolve()
        assert index.facts()["model"] == str((tmp_path / "model").resolve())
        names, rows, said = index.get(ids)
        assert names == ids and np.array_equal(rows, blocks) and said == payloads


def test_what_is_there_is_replaced_only_when_told(client, tmp_path):
    make_index(tmp_path / "i.avse")
    make_index(tmp_path / "j.avse", count=5)
    make_index(tmp_path / "t.avse", side="texts", store="memory")
    send(tmp_path / "i.avse", URL)
    with pytest.raises(FileExistsError, match="--force"):
        send(tmp_path / "j.avse", URL)
    assert send(tmp_path / "j.avse", URL, force=True)["entries"] == 4
    client.create_collection("other", vectors_config={})
    with pytest.raises(FileExistsError, match="is no index"):
        send(tmp_path / "j.avse", "qdrant://localhost/other", force=True)
    with pytest.raises(ValueError, match="the engine's MaxSim sums over the query's"):
        send(tmp_path / "t.avse", "qdrant://localhost/texts")
    with pytest.raises(ValueError, match="qdrant://host:6333/name"):
        send(tmp_path / "i.avse", "photos")
    for same in (URL, "qdrant+http://localhost:6333/photos/"):
        with pytest.raises(ValueError, match="is the collection that is copied: choose another name"):
            send(URL, same, force=True)
    with Index.open(URL) as index:
        assert len(index) == 4
    assert [collection.name for collection in client.get_collections().collections] == ["photos", "other"]


def test_the_pages_snippet_finds_what_avse_finds(client, tmp_path, monkeypatch, capsys):
    """The block of docs/export.md, with the local client in the place of the one it makes."""
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    code = re.search(r"```py\n(.*?)```", page, re.DOTALL)[1]
    ids, blocks, _ = make_index(tmp_path / "i.avse")
    with Index.open(tmp_path / "i.avse") as index:
        index.add_embeddings(ids, blocks, [{"width": 40 + row} for row in range(len(ids))])
    send(tmp_path / "i.avse", URL)
    query = unit(Q, C, seed=1)

    class Model:
        def encode_texts(self, texts):
            return query[None]

    monkeypatch.setattr("avse.AVSE", types.SimpleNamespace(from_pretrained=lambda folder: Model()), raising=False)
    monkeypatch.setattr(qdrant_client, "QdrantClient", lambda url: client)
    exec(code, {})
    exact = {name: naive_score(image, query) for row, (name, image) in enumerate(zip(ids, blocks)) if row >= 24}
    printed = [line.rpartition(" ")[0] for line in capsys.readouterr().out.splitlines()]
    assert printed == sorted(exact, key=exact.get, reverse=True)[:3]
