"""The server store: URLs, what is sent, and servers that refuse, stumble and die.

A Qdrant server could not be started where this was written. What it would answer comes from the client's local mode,
and from a small HTTP server that speaks just enough of its language.
"""

import http.server
import json
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import qdrant_client

from avse.index import Index, StoreError, server
from avse.index.contract import Layout
from avse.index.manifest import Manifest
from avse.index.points import key_of

LAYOUT = Layout("images", 4, 2, 8)
URL = "qdrant://localhost/photos"


@pytest.mark.parametrize(
    ("url", "base", "name"),
    [
        ("qdrant://host/photos", "http://host:6333", "photos"),
        ("qdrant://host:7000/photos/", "http://host:7000", "photos"),
        ("qdrant+https://a.b.c/m%C3%BC%20x", "https://a.b.c:6333", "mü x"),
        ("qdrant://[::1]:6333/photos", "http://[::1]:6333", "photos"),
    ],
)
def test_urls(url, base, name):
    assert server.parse_url(url) == (base, name, url)


@pytest.mark.parametrize(
    "url",
    [
        "qdrant://host:6333",
        "qdrant://host/a/b",
        "qdrant:///photos",
        "http://host:6333/photos",
        "qdrant://user:secret@host/photos",
        "qdrant://host/photos?shards=3",
        "qdrant://host:port/photos",
        "qdrant://host:70000/photos",
    ],
)
def test_what_is_no_url_of_an_index(url):
    with pytest.raises(ValueError, match="qdrant://host:6333/name"):
        Index.open(url)


def test_without_the_client_the_error_says_what_to_install():
    script = (
        "import sys; sys.modules['qdrant_client'] = None\n"
        "from avse.index import Index\n"
        "try:\n    Index.open('qdrant://localhost/x')\nexcept ImportError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert 'pip install "avse[server]"' in said


def test_making_opening_and_replacing(local_server, encoder, other_encoder, unit, saved_model):
    with pytest.raises(FileNotFoundError, match="no such index .avse index FOLDER --out qdrant://localhost/photos"):
        Index.open(URL)
    with Index.create(URL, saved_model) as index:
        index.add_embeddings(["a"], unit(1, 4, 8), [{"path": "a.png"}])
        assert (index.location, index.store, index.side, index.source) == (URL, "server", "images", None)
        with pytest.raises(ValueError, match="has no folder"):
            _ = index.path
    with Index.open(URL) as index:
        assert index.encoder.folder == saved_model.resolve() and len(index) == 1
        assert list(index.verify()) == []
    with pytest.raises(ValueError, match="colours-0.*colours-1"):
        Index.open(URL, other_encoder)
    with pytest.raises(FileExistsError, match="force"):
        Index.create(URL, encoder)
    with Index.create(URL, encoder, force=True) as index:
        assert len(index) == 0
    for arguments, message in [
        ({"store": "memory"}, "store 'memory' does not go with qdrant://localhost/photos"),
        ({"shards": 0}, "0 shards"),
        ({"replicas": -1}, "-1 replicas"),
        ({"side": "texts", "force": True}, "use the memory store"),
    ]:
        with pytest.raises(ValueError, match=message):
            Index.create(URL, encoder, **arguments)


def test_a_folder_takes_no_server_store_and_no_replicas(tmp_path, encoder):
    for arguments, message in [
        ({"store": "server"}, "a qdrant:// URL"),
        ({"store": "memory", "shards": 2}, "2 shards"),
        ({"replicas": 2}, "2 replicas"),
    ]:
        with pytest.raises(ValueError, match=message):
            Index.create(tmp_path / "i", encoder, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_collections_that_are_no_index_or_of_another_layout(local_server, encoder):
    models = qdrant_client.models
    local_server.create_collection("photos", vectors_config=models.VectorParams(size=8, distance="Dot"))
    with pytest.raises(StoreError, match="is not an index: the collection has no metadata 'avse'"):
        Index.open(URL)
    with pytest.raises(FileExistsError, match="is no index.*even force"):
        Index.create(URL, encoder, force=True)
    says = Manifest("server", LAYOUT, None, "colours-0").to_json()
    for name, config, metadata, message in [
        ("one", models.VectorParams(size=8, distance="Dot"), says, "vectors 'blocks' are .* None, not .8"),
        ("wide", {"blocks": models.VectorParams(size=16, distance="Dot")}, says, "16"),
        ("flat", {"blocks": models.VectorParams(size=8, distance="Dot")}, says, "False"),
        ("odd", {"blocks": models.VectorParams(size=8, distance="Dot")}, {**says, "side": "sounds"}, "damaged"),
        ("later", {"blocks": models.VectorParams(size=8, distance="Dot")}, {**says, "version": 99}, "reads 2"),
    ]:
        local_server.create_collection(name, vectors_config=config, metadata={"avse": metadata})
        with pytest.raises(StoreError, match=message):
            Index.open(f"qdrant://localhost/{name}")
    with Index.create("qdrant://localhost/odd", encoder, force=True) as index:  # damaged, but an index
        assert len(index) == 0


def test_a_server_that_keeps_no_metadata_is_too_old(local_server, encoder, monkeypatch):
    really = local_server.create_collection

    def forgetful(*arguments, metadata=None, **named):
        return really(*arguments, **named)

    monkeypatch.setattr(local_server, "create_collection", forgetful)
    with pytest.raises(StoreError, match="needs Qdrant 1.16"):
        Index.create(URL, encoder)
    assert not local_server.collection_exists("photos")


def test_damage_on_a_server_is_found_and_named(local_server, encoder, unit):
    models = qdrant_client.models
    blocks = unit(4, 4, 8)
    with Index.create(URL, encoder) as index:
        index.add_embeddings(["a", "b", "c", "d"], blocks, [{"n": number} for number in range(4)])
        turned = blocks[1].copy()
        turned.view(np.int32)[2, 3] ^= 1
        vectors = models.PointVectors(id=key_of("b"), vector={"blocks": turned.tolist()})
        local_server.update_vectors("photos", [vectors])
        local_server.set_payload("photos", {"json": '{"n":7}'}, [key_of("c")])
        said = sorted(index.verify())
        assert len(said) == 2 and "'b' is damaged (its blocks" in said[0] and "'c' is damaged (its payload" in said[1]
        with pytest.raises(StoreError, match="'[bc]' is damaged.*index again"):
            index.search(embedding=unit(1, 2, 8)[0])
        index.add_embeddings(["b", "c"], blocks[1:3])
        assert list(index.verify()) == [] and len(index.search(embedding=unit(1, 2, 8)[0])) == 4


class _Answers(http.server.BaseHTTPRequestHandler):
    """Answers from the list ``server.script``: a status, or "hang up"; then, or where it is empty, 200."""

    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.heard.append((self.command, self.path, json.loads(body or b"null"), dict(self.headers)))
        status = self.server.script.pop(0) if self.server.script else 200
        if status == "hang up":
            self.close_connection = True
            return
        content = json.dumps({"result": self.server.result, "status": "ok", "time": 0.0}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _answer

    def log_message(self, *_):
        pass


@pytest.fixture
def small_server(monkeypatch):
    monkeypatch.setattr(server, "_PAUSES", (0.0, 0.0))
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    made.script, made.heard, made.result = [], [], {"operation_id": 0, "status": "completed"}
    made.url = f"qdrant://127.0.0.1:{made.server_port}/photos"
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def _store(url):
    address = server.parse_url(url)
    return server.ServerStore(server.connect(address), address, LAYOUT)


def test_what_is_sent(small_server, unit, monkeypatch):
    blocks = unit(3, 4, 8)
    store = _store(small_server.url)
    store.add(["a", "b", "c"], blocks, [{"x": True, "y": "ü"}, {}, {}])
    ((method, path, body, headers),) = small_server.heard
    assert (method, path) == ("PUT", "/collections/photos/points?wait=true") and "api-key" not in headers
    assert [point["id"] for point in body["points"]] == [key_of(name) for name in "abc"]
    sent = np.array([point["vector"]["blocks"] for point in body["points"]], np.float32)
    assert np.array_equal(sent, blocks)  # every bit survives the decimal digits
    first = body["points"][0]["payload"]
    assert (first["id"], first["p"], first["flags"]) == ("a", {"x": True, "y": "ü"}, {"x": ["true"]})
    small_server.heard.clear()
    small_server.result = True
    manifest = Manifest("server", LAYOUT, "/models/m", "f", None, 6, 3)
    monkeypatch.setattr(server, "read", lambda *_: manifest)
    server.ServerStore.create(store._client, server.parse_url(small_server.url), manifest)
    ((method, path, body, _),) = small_server.heard
    assert (method, path) == ("PUT", "/collections/photos")
    assert (body["shard_number"], body["replication_factor"], body["write_consistency_factor"]) == (6, 3, 2)
    config = body["vectors"]["blocks"]
    assert (config["size"], config["distance"]) == (8, "Dot")
    assert config["multivector_config"] == {"comparator": "max_sim"}
    assert body["metadata"]["avse"] == json.loads(json.dumps(manifest.to_json()))


def test_the_key_comes_from_the_environment(small_server, unit, monkeypatch):
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client warns of keys without https, as it should
        store = _store(small_server.url)
    store.add(["a"], unit(1, 4, 8), [{}])
    assert {name.lower(): value for name, value in small_server.heard[0][3].items()}["api-key"] == "secret"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "401.*set QDRANT_API_KEY"),
        (403, "403.*set QDRANT_API_KEY to a key"),
        (404, "404.*no such collection"),
        (400, "400"),
    ],
)
def test_a_refusal_is_not_repeated(small_server, unit, status, message):
    small_server.script = [status]
    with pytest.raises(StoreError, match=rf"photos: failed while adding.*{message}"):
        _store(small_server.url).add(["a"], unit(1, 4, 8), [{}])
    assert len(small_server.heard) == 1


def test_a_stumble_is_repeated(small_server, unit):
    small_server.script = [500, "hang up", 200, 503]
    store = _store(small_server.url)
    store.add(["a"], unit(1, 4, 8), [{}])
    store.add(["b"], unit(1, 4, 8), [{}])
    sent = [body["points"][0]["id"] for _, _, body, _ in small_server.heard]
    assert sent == [key_of(name) for name in "aaabb"]


@pytest.mark.parametrize("end", [500, "hang up"])
def test_a_server_that_goes_away_in_mid_write(small_server, unit, monkeypatch, end):
    monkeypatch.setattr(server, "_REQUEST_BYTES", 2 * 4 * 4 * 8)  # two entries a request
    small_server.script = [200, 200] + [end] * 3
    with pytest.raises(
        StoreError, match="4 of these 7 entries are acknowledged, adding all of them again does no harm"
    ):
        _store(small_server.url).add([str(number) for number in range(7)], unit(7, 4, 8), [{}] * 7)
    assert len(small_server.heard) == 5


def test_nobody_there(small_server, encoder, monkeypatch):
    url = "qdrant://127.0.0.1:1/photos"  # no server listens on port 1
    for attempt in (lambda: Index.open(url), lambda: Index.create(url, encoder)):
        with pytest.raises(StoreError, match="no answer from http://127.0.0.1:1 .*is a Qdrant server running there"):
            attempt()


def test_a_server_of_something_else(small_server):
    small_server.result = "hello"
    with pytest.raises(StoreError, match="photos: failed while looking for the collection"):
        Index.open(small_server.url)
