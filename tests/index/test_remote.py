"""`--url`: the client of the server's API, against avse's own server over a real index in the memory store."""

import json
import os
import socket
import threading

import numpy as np
import pytest
from PIL import Image
from starlette.responses import JSONResponse

from avse.cli import main
from avse.index import Index, StoreError
from avse.index.remote import Remote, sync_remote
from avse.serve import Limits, create_app
from avse.serve.engine import BusyError, Engine
from avse.serve.run import Server, listen


class Faults:
    """Around the real application: notes what is asked, and answers in its place where a test says so."""

    def __init__(self, app):
        self.app, self.state, self.log, self.answers = app, app.state, [], []

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        self.log.append((scope["method"].lower(), scope["path"]))
        status, value = self.answers.pop(0) if self.answers else (0, None)
        if status is None:  # gone in the middle
            return send.__self__.transport.abort()
        if status:
            headers = {"Retry-After": "3"} if status == 429 else {}
            return await JSONResponse(value, status, headers)(scope, receive, send)
        await self.app(scope, receive, send)


@pytest.fixture
def server(tmp_path, encoder, monkeypatch):
    monkeypatch.setattr("avse.index.remote._PAGE", 2)  # small, so that there are several
    ready, sock = threading.Event(), listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    with Index.create(tmp_path / "served.avse", encoder, store="memory") as index:
        limits = Limits(upload_bytes=100_000)
        app = Faults(create_app(index, token="secret", limits=limits))
        running = Server(app, limits, ready.set)
        thread = threading.Thread(target=running.run_on, args=(sock,))
        thread.start()
        assert ready.wait(20)
        app.index, app.url, app.limits = index, url, limits
        yield app
        running.stop()
        thread.join()


@pytest.fixture
def remote(server):
    return Remote(server.url, "secret")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ("a.png", "b/ü & 1?.png", "b/c.png"):
        paint(folder / name, len(name))
    return folder


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """What the client waits for, in no time."""
    waited = []
    monkeypatch.setattr("avse.index.remote.sleep", waited.append)
    return waited


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
    (photos / "huge.png").write_bytes(bytes(100_001))
    (photos / "b" / "ü & 1?.png").unlink()
    report = sync_remote(remote, photos, progress=False)
    assert (report.changed, report.duplicates, report.known, report.removed) == (1, 1, 1, 0)
    assert [tuple(skip) for skip in report.skipped] == [
        ("bad.png", "no picture of a known format"),
        ("huge.png", "100,001 bytes, and the server takes 100,000"),
    ]
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
    fails(
        r"refuses the token \(the server's token is wanted\): give it as --token or in AVSE_TOKEN",
        remote=Remote(server.url, "wrong"),
    )
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
    server.answers = [(0, None)] * 3 + [(None, None)] * 9  # a list, what is taken and one upload pass
    with pytest.raises(StoreError, match="the same command goes on from there"):
        sync(remote, photos)
    assert paths(server) == [["a.png"]]
    server.answers.clear()
    assert sync(remote, photos) == {"known": 1, "added": 2}


BUSY = (429, {"detail": "too many requests at once"})


def test_a_busy_server_is_asked_again(server, remote, photos, pauses):
    server.answers = [BUSY, BUSY, (0, None), (0, None), BUSY]  # a list, what is taken, an upload: its body goes again
    assert sync(remote, photos) == {"added": 3} and pauses == [3, 6, 3]
    pauses.clear()
    server.answers = [BUSY] * 9
    with pytest.raises(StoreError, match=r"answered 429 \(too many requests at once\): it has too much to do"):
        remote.search("a dog")
    assert pauses == [3, 6, 12, 24, 30] and len(server.answers) == 3


def test_a_refusal_that_is_lost_with_a_large_body_is_no_end(server, remote, photos, pauses):
    """A server that closes without reading resets the connection, and the client never sees its 429."""
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    Image.fromarray(noise).save(photos / "a.png")
    object.__setattr__(server.limits, "upload_bytes", 1 << 25)
    server.answers = [(0, None), (0, None), BUSY, BUSY]  # a list, what is taken
    assert sync(remote, photos) == {"added": 3} and len(pauses) == 2


def test_an_upload_that_is_put_off_in_the_middle_leaves_no_file(server, remote, photos, pauses, monkeypatch):
    call, asked = Engine.call, []

    async def busy(engine, work, **more):
        if server.log[-1][0] == "post":
            asked.append(work)
            if len(asked) == 2:  # the first half of the first upload is done
                raise BusyError("8 questions are waiting already")
            assert len(asked) < 2 or len(list(server.index.path.glob("uploads/*/*"))) == len(server.index)
        return await call(engine, work, **more)

    monkeypatch.setattr(Engine, "call", busy)
    assert sync(remote, photos) == {"added": 3} and len(pauses) == 1
    assert list(server.index.verify()) == []


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
