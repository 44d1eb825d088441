"""What is sent to a server by those who mean it harm: refused with the right status, nothing leaked, it lives on."""

import base64
import hashlib
import io
import json
import socket
import struct
import threading
import time
import zlib
from urllib.parse import quote

import pytest
from PIL import Image
from serve_kit import TOKEN, WHEN, head, paint, read_all, running, status
from starlette.testclient import TestClient

from avse.serve import Limits, create_app


def upload(server, data, path="x.png", **said):
    sha = hashlib.sha256(data).hexdigest()
    return server.client.post(
        "/api/images", params={"path": path, "sha256": sha, "modified": WHEN, **said}, content=data
    )


@pytest.fixture
def clean(server, tmp_path):
    """Fails where a body tells a path of this machine, a traceback or a file's content."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret of the house")
    paint(tmp_path / "outside.png", 77)

    def check(body):
        text = body if isinstance(body, bytes) else body.content
        for leak in (str(tmp_path).encode(), b"Traceback", b"secret of the house", b'File "', b"site-packages"):
            assert leak not in text, text[:500]

    return check


def test_paths_lead_nowhere(server, clean, tmp_path):
    targets = [
        b"/../../../secret.txt", b"/static/../../../../secret.txt", b"/static/%2e%2e/%2e%2e/app.py",
        b"/static/..%2f..%2fapp.py", b"/static/%252e%252e/app.py", b"/static/..\\..\\app.py",
        b"/static/..%5c..%5capp.py",
        b"/static//etc/passwd", b"/static/%00", b"/static/app.css%00.png", b"/static/../app.py", b"/static/.",
    ]  # fmt: skip
    names = ["../secret.txt", "..%2fsecret.txt", "%2e%2e%2fsecret.txt", "%252e%252e%252fsecret.txt", "..\\secret.txt"]
    names += ["..%5csecret.txt", "%00", "sea/../../secret.txt", quote(str(tmp_path / "secret.txt"), safe="")]
    names += [str(tmp_path / "secret.txt"), "sea/01%20%C3%BC.png%00", "file:%2f%2f%2fetc%2fpasswd", "%ff%fe", "."]
    for room in ("/thumbnails/", "/api/images/", "/api/similar/"):
        targets += [(room + name).encode() for name in names]
    for target in targets:
        answer = server.raw(head("GET", target))
        assert status(answer) in (400, 404, 405), (target, answer[:200])
        clean(answer)
    for name in ("../outside.png", str(tmp_path / "outside.png")):
        answer = server.client.get("/api/explain", params={"id": name, "query": "x"})
        assert answer.status_code == 404
        clean(answer)
    server.lives()


def test_a_link_out_of_the_folder_is_not_followed(server, clean, photos, tmp_path):
    inside, name = photos / "sea" / "01 ü.png", "/thumbnails/sea/01 ü.png"
    assert server.client.get(name).status_code == 200
    for target in (tmp_path / "outside.png", tmp_path / "secret.txt", inside, "/dev/zero"):
        inside.unlink()
        inside.symlink_to(target)
        answer = server.client.get(name)
        assert answer.status_code == 404
        clean(answer)
        explained = server.client.get("/api/explain", params={"id": "sea/01 ü.png", "query": "x"})
        assert explained.status_code == 404
    inside.unlink()
    inside.symlink_to(photos / "sea" / "03 ü.png")  # within the folder
    assert server.client.get(name).status_code == 200
    (photos / "sea").rename(tmp_path / "moved")
    (photos / "sea").symlink_to(tmp_path / "moved")  # a folder on the way leads out
    assert server.client.get("/thumbnails/sea/03 ü.png").status_code == 404
    server.lives()


def png(width, height, idat=b""):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def test_bombs_are_not_decoded(server, clean):
    bomb = png(60_000, 60_000, zlib.compress(bytes(10_000_000)))
    assert len(bomb) < 20_000
    began = time.monotonic()
    for answer in (
        server.client.post("/api/search", files={"image": bomb}),
        server.client.post("/api/search", json={"image": base64.b64encode(bomb).decode()}),
        upload(server, bomb),
    ):
        assert answer.status_code == 413 and "pixels" in answer.json()["detail"]
        clean(answer)
    text = png(20, 20, zlib.compress(bytes(20 * 61)))
    many = b"\x00\x00\x00\x00"  # a text chunk that unpacks to 64 MB
    data = b"a\0\0" + zlib.compress(bytes(64 << 20))
    chunk = struct.pack(">I", len(data)) + b"zTXt" + data + struct.pack(">I", zlib.crc32(b"zTXt" + data))
    answer = server.client.post("/api/search", files={"image": text[:33] + chunk + text[33:] + many})
    assert answer.status_code in (200, 415)
    assert time.monotonic() - began < 5
    server.lives()


def test_no_byte_of_a_file_comes_back(server, photos, tmp_path):
    evil = b"<script>alert(document.domain)</script>"
    stream = io.BytesIO()
    Image.new("RGB", (50, 40), (9, 99, 200)).save(stream, "JPEG", comment=evil, exif=b"Exif\0\0" + evil)
    polyglot = stream.getvalue() + b"<html>" + evil + b"</html>"
    assert upload(server, polyglot, "evil.html.jpg").status_code == 201
    answer = server.client.get("/thumbnails/evil.html.jpg")
    assert answer.headers["content-type"] == "image/jpeg" and evil not in answer.content
    assert b"script" not in answer.content and answer.headers["x-content-type-options"] == "nosniff"
    assert server.client.get("/api/images/evil.html.jpg").json()["picture"]
    server.lives()


def test_uploads_that_are_no_pictures(server, clean):
    whole = paint(server.index.path.parent / "whole.jpg", 3, size=(300, 300))
    jpeg = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(jpeg, "JPEG")
    cut = jpeg.getvalue()[:3000]
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) print"
    for data in (cut, whole[:200], svg, eps, b"GIF89a", b"\0" * 100, b"<html>", b"MZ" + bytes(200), whole[8:]):
        for answer in (
            upload(server, data),
            server.client.post("/api/search", files={"image": data}),
            server.client.post("/api/search", json={"image": base64.b64encode(data).decode()}),
        ):
            assert answer.status_code == 415, (data[:20], answer.text)
            clean(answer)
    assert upload(server, b"").status_code in (415, 422)
    assert server.client.get("/api/info").json()["entries"] == 12 == len(server.index)
    assert not [file for file in (server.index.path / "uploads").rglob("*") if file.is_file()]
    server.lives()


def test_what_is_said_of_an_upload_is_checked(server, clean):
    data = paint(server.index.path.parent / "u.png", 40)
    wrong = [
        {"sha256": "0" * 64}, {"sha256": "../" * 21 + "x"}, {"sha256": "Z" * 64}, {"modified": "yesterday"},
        {"path": ""},
        {"path": "/etc/passwd"}, {"path": "../x.png"}, {"path": "a/../x.png"}, {"path": "a\\b.png"},
        {"path": "a\nb.png"},
        {"path": "x" * 1001}, {"path": "C:/x.png"}, {"path": "a//b"}, {"path": "a\0b"}, {"path": "./a"},
    ]  # fmt: skip
    for said in wrong:
        answer = upload(server, data, **said)
        assert answer.status_code == 422, said
        clean(answer)
    assert not (server.index.path / "uploads").exists() and len(server.index) == 12
    assert upload(server, data, "fine/ü.png").status_code == 201
    files = [file for file in server.index.path.rglob("uploads/*/*")]
    assert [file.name for file in files] == [hashlib.sha256(data).hexdigest()] and files[0].read_bytes() == data


def test_a_link_out_of_the_uploads_is_not_followed(server, clean, tmp_path):
    """Not one in place of the file, wherever it leads, and not one in place of a folder on the way."""
    data = paint(tmp_path / "u.png", 40)
    assert upload(server, data, "u.png").status_code == 201
    (kept,) = server.index.path.glob("uploads/*/*")
    asked = [("/thumbnails/u.png", {}), ("/api/explain", {"id": "u.png", "query": "x"})]
    assert all(server.client.get(path, params=said).status_code != 404 for path, said in asked)
    whole = tmp_path / "whole" / kept.parent.name / kept.name
    whole.parent.mkdir(parents=True)
    whole.write_bytes(data)  # the very content, outside
    for target in (whole, tmp_path / "secret.txt", "/dev/zero"):
        kept.unlink()
        kept.symlink_to(target)
        for path, said in asked:
            answer = server.client.get(path, params=said)
            assert answer.status_code == 404, (path, target)
            clean(answer)
    kept.unlink()
    kept.parent.rmdir()
    kept.parent.symlink_to(whole.parent)  # a folder on the way leads out
    assert all(server.client.get(path, params=said).status_code == 404 for path, said in asked)
    server.lives()


def test_tokens(index, clean_log=None):
    guarded = ["/api/info", "/api/images", "/api/images/x", "/thumbnails/sea/01 ü.png", "/metrics", "/api/similar/x"]
    with running(index, token=TOKEN) as server:
        client = server.client
        client.headers.pop("Authorization")
        wrong = [
            {},
            {"Authorization": "Bearer"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Basic {TOKEN}"},
        ]
        wrong += [{"Authorization": b"Bearer \xff\xfe"}, {"Cookie": f"avse_session={TOKEN}"}, {"Cookie": "=;;=,\\"}]
        wrong += [{"Cookie": "avse_session="}, {"Authorization": f"Bearer {TOKEN[:-1]}"}, {"X-Token": TOKEN}]
        for headers in wrong:
            for path in guarded:
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert TOKEN not in answer.text
            assert client.post("/api/search", json={"query": "x"}, headers=headers).status_code == 401
            assert client.delete("/api/images/sea/01 ü.png", headers=headers).status_code == 401
        assert client.get("/healthz").status_code == client.get("/openapi.json").status_code == 200
        assert client.post("/api/session", json={"token": "wrong"}).status_code == 401
        assert (
            client.post("/api/session", json={"token": TOKEN[:-1] + "\udce4"}.copy() | {"token": "ü"}).status_code
            == 401
        )
        answer = client.post("/api/session", json={"token": TOKEN})
        cookie = answer.headers["set-cookie"].lower()
        assert (
            answer.status_code == 204 and "httponly" in cookie and "samesite=strict" in cookie and TOKEN not in cookie
        )
        assert client.get("/api/info").status_code == client.get("/thumbnails/sea/01 ü.png").status_code == 200
    with running(index) as server:
        data = paint(index.path.parent / "u.png", 40)
        answer = upload(server, data)
        assert answer.status_code == 403 and "--token" in answer.json()["detail"]
        assert server.client.delete("/api/images/sea/01 ü.png").status_code == 403
        assert not server.client.get("/api/info").json()["uploads"] and len(index) == 12
        assert server.client.post("/api/session", json={"token": ""}).status_code == 401


def test_other_origins_and_other_names(index):
    with running(index, token=TOKEN) as server:
        ask = {"json": {"query": "x"}}
        own = {"Origin": server.url}
        assert server.client.post("/api/search", headers=own, **ask).status_code == 200
        for origin in ("http://evil.example", "null", server.url.replace("http", "https") + "0", "http://127.0.0.1"):
            answer = server.client.post("/api/search", headers={"Origin": origin}, **ask)
            assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
            assert server.client.delete("/api/images/x", headers={"Origin": origin}).status_code == 403
        for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "", "[::1].evil"):
            answer = server.client.get("/healthz", headers={"Host": host})
            assert (answer.status_code == 400) != (host == "[::1].evil"), host
        assert server.client.get("/healthz", headers={"Host": f"LOCALHOST:{server.port}"}).status_code == 200
        preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        answer = server.client.options("/api/search", headers=preflight)
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
        for path in ("/api/info", "/api/similar/sea/01 ü.png", "/thumbnails/sea/01 ü.png", "/metrics"):
            for headers in (
                {"Origin": "http://evil.example"},
                *({"Sec-Fetch-Site": f"{x}-site"} for x in ("cross", "same")),
            ):
                assert server.client.get(path, headers=headers).status_code == 403, (path, headers)
            for headers in ({"Origin": server.url, "Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
                assert server.client.get(path, headers=headers).status_code == 200, (path, headers)
        assert server.client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200  # a link to the page
    with running(index, cors=["https://good.example"]) as server:
        headers = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST"}
        answer = server.client.options("/api/search", headers=headers)
        assert answer.status_code == 204 and answer.headers["access-control-allow-origin"] == "https://good.example"
        assert "Authorization" in answer.headers["access-control-allow-headers"] and answer.headers["x-request-id"]
        assert "DELETE" in answer.headers["access-control-allow-methods"] and answer.headers["vary"] == "Origin"
        assert server.client.options("/api/search", headers={**headers, "Host": "evil.example"}).status_code == 400
        answer = server.client.get("/thumbnails/sea/01 ü.png", headers={**headers, "Sec-Fetch-Site": "cross-site"})
        assert answer.status_code == 200 and answer.headers["cross-origin-resource-policy"] == "same-origin"
        answer = server.client.post("/api/search", headers={"Origin": "https://good.example"}, json={"query": "x"})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://good.example"
        answer = server.client.post("/api/search", headers={"Origin": "https://evil.example"}, json={"query": "x"})
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    with running(index, cors=["https://good.example"], token=TOKEN) as server:
        del server.client.headers["Authorization"]
        assert server.client.options("/api/search", headers=headers).status_code == 204  # it brings no token
        answer = server.client.post("/api/search", headers={"Origin": "https://good.example"}, json={"query": "x"})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, "https://good.example")


def test_a_root_path_opens_nothing(index):
    paths = ["/api/info", "/api/images/sea/01 ü.png", "/thumbnails/sea/01 ü.png", "/metrics", "/nothing", "/static"]
    with TestClient(create_app(index, token=TOKEN), base_url="http://localhost", root_path="/photos") as client:
        for path in (*paths, "", "/photos/api/info", "/photos/photos/static/app.css", "//static/app.css"):
            for start in ("", "/photos"):
                assert client.get(start + path).status_code == 401 or start + path == "", start + path
        assert client.delete("/photos/api/images/sea/01 ü.png").status_code == 401 and len(index) == 12
        for path in ("/", "/healthz", "/openapi.json", "/static/app.css"):
            assert client.get(f"/photos{path}").status_code in (200, 404), path
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        assert client.get("/photos/api/info").status_code == 200


def test_a_cookie_among_odd_ones(server):
    client = server.client
    del client.headers["Authorization"]
    session = client.post("/api/session", json={"token": TOKEN}).headers["set-cookie"].partition(";")[0]
    client.cookies.clear()
    for odd in ("", 'x={"a":1}; ', "a[0]=1; ", "na me=1; ", "; ", "x; ", 'x="; ', "=; "):
        assert client.get("/api/info", headers={"Cookie": odd + session}).status_code == 200, odd
        assert client.get("/api/info", headers={"Cookie": odd + session[:-1]}).status_code == 401, odd


def test_a_picture_that_may_not_be_read_tells_no_path(server, clean, photos, monkeypatch):
    def closed(*_, **__):
        raise PermissionError(13, "Permission denied", str(photos / "sea" / "01 ü.png"))

    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", closed)
        answer = server.client.get("/api/explain", params={"id": "sea/01 ü.png", "query": "x"})
    assert answer.status_code == 404 and "Permission denied" in answer.json()["detail"]
    clean(answer)


def test_malformed_questions(server, clean):
    def ask(body, kind="application/json"):
        return server.client.post("/api/search", content=body, headers={"Content-Type": kind})

    for body, wanted in [
        (b"", 422), (b"{", 400), (b"[]", 422), (b"null", 422), (b'"x"', 422), (b"{}", 422), (b"\xff\xfe{", 400),
        (b'{"query": "\\ud800"}', 400), (b'{"query": 5}', 422), (b'{"query": ["x"]}', 422), (b'{"query": " "}', 422),
        (b'{"query": "x", "k": 0}', 422), (b'{"query": "x", "k": 1e99}', 422), (b'{"query": "x", "k": "many"}', 422),
        (b'{"query": "x", "k": 201}', 422), (b'{"query": "x", "where": "a >"}', 422), (b'{"query": "x", "y": 1}', 422),
        (b'{"query": "a\\u0000b"}', 422), (b'{"image": "no base64!"}', 422), (b'{"image": ""}', 422), (b"[" * 100_000,
        400),
        (json.dumps({"query": "x" * 1001}).encode(), 422), (json.dumps({"query": "x", "where": "(" * 999}).encode(),
        422),
        (b'{"query": "x", "where": "' + b"a" * 1001 + b'"}', 422), (b'{"query": "x", "approximate": true}', 422),
        (b'{"query":"x","k":' + b"9" * 5000 + b"}", 422), (b'{"query": NaN}', 422),
    ]:  # fmt: skip
        answer = ask(body)
        assert answer.status_code in (wanted, 400 if wanted == 422 and len(body) > 4000 else wanted), (
            body[:60],
            answer.text,
        )
        assert isinstance(answer.json()["detail"], str) and len(answer.text) < 1000
        clean(answer)
    assert ask(b"x", "text/plain").status_code == ask(b"x", "image/png").status_code == 415
    part = b'--b\r\nContent-Disposition: form-data; name="query"\r\n\r\nx\r\n'
    file = b'--b\r\nContent-Disposition: form-data; name="image"; filename="../../x"\r\n\r\nx\r\n'
    for body in (
        b"", b"--b", b"garbage", part, part + b"--b\r\n\r\n", b"--b\r\nno head", part * 9 + b"--b--\r\n",
        part * 2 + b"--b--\r\n",
        file * 2 + b"--b--\r\n", b'--b\r\nContent-Disposition: form-data; name="q"\r\n' * 3,
        b"--b\r\n" + b"a: b\r\n" * 5000,
        b'--b\r\nContent-Disposition: form-data; name="query"\r\n\r\n' + b"x" * 20_000 + b"\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="query"\r\n\r\n\xff\xfe\r\n--b--\r\n',
        b'--b\r\nContent-Disposition: form-data; name="\xff"; filename="\xff"\r\n\r\n\xff\xfe\r\n--b--\r\n',
    ):  # fmt: skip
        answer = ask(body, "multipart/form-data; boundary=b")
        latin = body.endswith(b"\r\n\xff\xfe\r\n--b--\r\n") and b"filename" not in body  # read as Latin-1 then
        assert answer.status_code in (200 if latin else 400, 413, 422), (body[:80], answer.status_code, answer.text)
        clean(answer)
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=" + "x" * 500):
        assert ask(part, kind).status_code in (400, 422), kind
    for path in (
        "/api/images?limit=0",
        "/api/images?limit=x",
        "/api/images?limit=1001",
        "/api/explain?id=x",
        "/api/images?limit=%ff",
    ):
        answer = server.client.get(path)
        assert answer.status_code == 422
        clean(answer)
    for method in ("PUT", "PATCH", "TRACE", "BREW", "HEAD"):
        assert server.client.request(method, "/api/search").status_code == 405
    server.lives()


def test_broken_http(server, clean):
    for data, statuses in [
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n", (400, 431, 0)),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", (400, 431, 0)),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", (400, 414, 0)),
        (b"GET / HTTP/1.1\r\n\r\n", (400,)), (b"GET / HTTP/9.9\r\n\r\n", (400, 505)), (b"\x16\x03\x01\x02\x00\x01",
        (400,)),
        (b"GET \xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n", (400,)), (b"\r\n\r\n\r\n", (400, 0)), (b"\0" * 1000,
        (400,)),
        (head("POST", b"/api/search", b"Content-Length: 5", b"Content-Length: 6") + b"hello", (400,)),
        (head("POST", b"/api/search", b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n", (400, 422)),
        (head("POST", b"/api/search", b"Transfer-Encoding: chunked") + b"zz\r\nhello", (400,)),
        (head("POST", b"/api/search", b"Transfer-Encoding: gzip") + b"hello", (400, 501)),
        (head("GET", b"/healthz", b"X: a\x00b"), (400,)), (head("GET", b"http://evil.example/healthz"), (200, 400,
        404)),
        (head("GET", b"/healthz", b"Upgrade: websocket", b"Connection: Upgrade"), (200, 400)),
    ]:  # fmt: skip
        answer = server.raw(data, finish=0 in statuses, timeout=3.0)
        assert status(answer) in statuses, (data[:60], answer[:200])
        clean(answer)
    server.lives()


def test_those_who_say_nothing_are_let_go(index):
    with running(index, token=TOKEN, limits=Limits(idle_seconds=1.0, seconds=2.0, connections=60)) as server:
        began = time.monotonic()
        silent = [socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(40)]
        for number, connection in enumerate(silent):
            connection.sendall((b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nA: b")[number % 3])
        drip = socket.create_connection(("127.0.0.1", server.port), 20)
        drip.sendall(head("GET", b"/healthz")[:40])

        def feed():
            try:
                while True:
                    time.sleep(0.2)
                    drip.sendall(b"a")
            except OSError:
                pass

        threading.Thread(target=feed, daemon=True).start()
        server.lives()
        slow = socket.create_connection(("127.0.0.1", server.port), 20)
        slow.sendall(head("POST", b"/api/search", b"Content-Length: 100") + b"{")
        assert status(read_all(slow)) == 408
        assert all(b"200" not in read_all(connection) for connection in silent) and read_all(drip) is not None
        assert time.monotonic() - began < 8
        for connection in (*silent, drip, slow):
            connection.close()
        server.lives()


def test_an_index_that_fails_tells_nothing(server, clean, monkeypatch, tmp_path):
    from avse.index import StoreError

    def fails(queries):
        raise StoreError(f"{tmp_path} is damaged")

    monkeypatch.setattr(server.index, "search_many", fails)
    answer = server.client.post("/api/search", json={"query": "x"})
    assert answer.status_code == 503
    clean(answer)

    def breaks(queries):
        raise ZeroDivisionError(str(tmp_path))

    monkeypatch.setattr(server.index, "search_many", breaks)
    answer = server.client.post("/api/search", json={"query": "x"})
    assert answer.status_code == 500 and answer.headers["x-request-id"] in answer.json()["detail"]
    clean(answer)
    monkeypatch.undo()
    server.lives()
