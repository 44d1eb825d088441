"""`--url`: the client of the server's API, against a small server over a real index in the memory store.

avse's own server comes later; this one does what `avse.index.remote` says of it, with a brute-force search behind.
"""

import base64
import hashlib
import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from avse.cli import main
from avse.images import ImageError
from avse.index import Index, StoreError
from avse.index.pictures import path_payload
from avse.index.remote import Remote, sync_remote


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, value=None):
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_one(self, method):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server, url = self.server, urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(url.query).items()}
        server.log.append((method, url.path, asked.get("path")))
        if server.answers:
            status, value = server.answers.pop(0)
            if status is None:  # gone in the middle
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_RDWR)
            if status:
                return self.answer(status, value)
        if self.headers.get("Authorization") != "Bearer secret":
            return self.answer(401, {"detail": "no"})
        with server.guard:
            return getattr(self, method)(url.path, asked, body)

    def do_GET(self):
        self.handle_one("get")

    def do_POST(self):
        self.handle_one("post")

    def do_DELETE(self):
        self.handle_one("delete")

    @property
    def all(self):
        return {name: payload for page in self.server.index.entries() for name, payload in page}

    def get(self, path, asked, body):
        names = sorted(name for name in self.all if name > asked.get("after", ""))
        page = names[:2]  # small, so that there are several
        entries = [{"id": name, "payload": self.all[name]} for name in page]
        self.answer(200, {"entries": entries, "next": page[-1] if len(names) > 2 else None})

    def post(self, path, asked, body):
        index = self.server.index
        if path == "/api/search":
            said = json.loads(body)
            picture = None if said["image"] is None else base64.b64decode(said["image"])
            try:
                hits = index.search(said["query"], image=picture, where=said["where"], k=said["k"])
            except ValueError as error:
                return self.answer(422, {"detail": str(error)})
            return self.answer(200, {"hits": [{"id": h.id, "score": h.score, "payload": h.payload} for h in hits]})
        assert hashlib.sha256(body).hexdigest() == asked["sha256"]
        name = asked["path"]
        holder = next((key for key, payload in self.all.items() if payload["sha256"] == asked["sha256"]), None)
        try:
            blocks = index.encoder.encode_images([body]) if holder is None else None
        except ImageError as error:
            return self.answer(415, {"detail": error.reason})
        self.take_out(name)
        if blocks is None:
            _, blocks, (payload,) = index.get([holder])
            index.add_embeddings([holder], blocks, [{**payload, "paths": sorted({*payload["paths"], name})}])
            return self.answer(200, {"id": holder})
        facts = {"sha256": asked["sha256"], "modified": asked["modified"], "bytes": len(body)}
        index.add_embeddings([name], blocks, [{**path_payload(name, [name]), **facts}])
        return self.answer(201, {"id": name})

    def delete(self, path, asked, body):
        found = self.take_out(unquote(path.removeprefix("/api/images/")))
        self.answer(204 if found else 404)

    def take_out(self, name):
        for key, payload in self.all.items():
            if name in payload["paths"]:
                paths = [path for path in payload["paths"] if path != name]
                _, blocks, _ = self.server.index.get([key])
                self.server.index.delete([key])
                if paths:
                    new = key if key in paths else paths[0]
                    self.server.index.add_embeddings([new], blocks, [{**payload, **path_payload(new, paths)}])
                return True
        return False


@pytest.fixture
def server(tmp_path, encoder):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.index, made.answers, made.log, made.guard = None, [], [], threading.Lock()
        made.index = Index.create(tmp_path / "served.avse", encoder, store="memory")
        made.url = f"http://127.0.0.1:{made.server_port}"
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()
        made.index.close()


@pytest.fixture
def remote(server):
    return Remote(server.url, "secret")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("a.png", "b/ü & 1?.png", "b/c.png"):
        paint(folder / name, len(name))
    return folder


def paint(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (5, 6, 3), np.uint8)).save(path)
    os.utime(path, ns=(0, (10**9 + number) * 10**9))


def sync(remote, photos, **more):
    report = sync_remote(remote, photos, progress=False, **more)
    return {name: value for name, value in vars(report).items() if value and name != "skipped"}


def paths(server):
    return sorted(payload["paths"] for page in server.index.entries() for _, payload in page)


def test_a_folder_and_a_server(server, remote, photos, encoder):
    assert sync(remote, photos) == {"added": 3}
    assert paths(server) == [["a.png"], ["b/c.png"], ["b/ü & 1?.png"]]
    (_, blocks, payloads) = server.index.get(["b/ü & 1?.png"])
    assert np.array_equal(blocks, encoder.encode_images([photos / "b" / "ü & 1?.png"]))
    assert payloads[0]["modified"].startswith("2001-09-09T01:46:5")
    server.log.clear()
    assert sync(remote, photos) == {"known": 3} and {method for method, *_ in server.log} == {"get"}
    paint(photos / "a.png", 50)
    (photos / "copy.png").write_bytes((photos / "b" / "c.png").read_bytes())
    (photos / "bad.png").write_bytes(b"no picture")
    (photos / "b" / "ü & 1?.png").unlink()
    report = sync_remote(remote, photos, progress=False)
    assert (report.changed, report.duplicates, report.known, report.removed) == (1, 1, 1, 0)
    assert [tuple(skip) for skip in report.skipped] == [("bad.png", "no picture of a known format")]
    assert paths(server) == [["a.png"], ["b/c.png", "copy.png"], ["b/ü & 1?.png"]]  # others may have sent it


def test_prune_over_a_url(server, remote, photos, tmp_path):
    sync(remote, photos)
    (photos / "b" / "ü & 1?.png").unlink()
    (photos / "a.png").rename(photos / "moved.png")
    paint(photos / "new.png", 60)
    assert sync(remote, photos, prune=True) == {"known": 1, "moved": 1, "removed": 1}
    assert paths(server) == [["b/c.png"], ["moved.png"]]
    paint(tmp_path / "other" / "x.png", 70)
    with pytest.raises(ValueError, match="has 2 pictures, and none of them lies in"):
        sync(remote, tmp_path / "other", prune=True)
    assert len(paths(server)) == 2


def test_search_is_that_of_the_index(server, remote, photos):
    sync(remote, photos)
    for asked in ({"query": "a dog"}, {"image": photos / "a.png"}, {"query": "a dog", "image": photos / "a.png"}):
        assert remote.search(**asked, k=2) == server.index.search(**asked, k=2)
    assert [hit.id for hit in remote.search("a dog", where="folder = b")] == [
        hit.id for hit in server.index.search("a dog", where="folder = b")
    ]
    with pytest.raises(ValueError, match="position 4"):
        remote.search("a dog", where="a >")


def test_what_goes_wrong_is_said(server, remote, photos, monkeypatch):
    def fails(message, error=StoreError, remote=remote):
        with pytest.raises(error, match=message):
            sync(remote, photos)

    for url in ("127.0.0.1:8000", "ftp://x", "http://", "http://x/?q"):
        with pytest.raises(ValueError, match="http://host:port of a running"):
            Remote(url)
    fails(r"refuses the token \(no\): give it as --token or in AVSE_TOKEN", remote=Remote(server.url, "wrong"))
    monkeypatch.setenv("AVSE_TOKEN", "secret")
    assert sync(Remote(server.url), photos) == {"added": 3}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = Remote(f"http://127.0.0.1:{free.getsockname()[1]}")
    fails("does not answer .*refused.*is an avse server running there", remote=closed)
    for answer, message in [
        ((500, {"detail": "the disk is full"}), r"answered 500 \(the disk is full\).*goes on from there"),
        ((404, None), "answered 404 .*is it an avse server"),
        ((302, None), "answered 302"),
        ((200, {"pictures": []}), "another form"),
        ((200, [1]), "another form"),
        ((None, None), "does not answer"),
    ]:
        server.answers = [answer]
        fails(message)


def test_a_server_that_goes_away_in_the_middle_loses_nothing_acknowledged(server, remote, photos):
    server.answers = [(0, None), (0, None), (None, None)]  # a list and one upload pass
    with pytest.raises(StoreError, match="the same command goes on from there"):
        sync(remote, photos)
    assert paths(server) == [["a.png"]]
    assert sync(remote, photos) == {"known": 1, "added": 2}


def test_the_command_line(server, photos, capsys):
    asked = ["--url", server.url, "--token", "secret"]
    assert main(["index", str(photos), *asked]) == 0
    assert capsys.readouterr().out == f"{server.url}: 3 added\n"
    assert main(["search", "a dog", "-k", "2", *asked]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["search", "--image", str(photos / "a.png"), "-k", "1", "--json", *asked]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "a.png"
    (photos / "a.png").unlink()
    assert main(["index", "--prune", str(photos), *asked]) == 0
    assert capsys.readouterr().out == f"{server.url}: 1 removed, 2 unchanged\n"
    assert main(["index", "--delete", "b/c.png", "--delete", "nothing.png", *asked]) == 0
    assert capsys.readouterr().out == f"{server.url}: 1 removed\n"
    assert main(["index", "--delete", "b/c.png", *asked]) == 1
    assert main(["search", "a dog", "--url", server.url, "--token", "wrong"]) == 1
    assert "refuses the token" in capsys.readouterr().err
