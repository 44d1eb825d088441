"""What is too large or too much for a server: refused with the right status, let go again, and it lives on."""

import base64
import socket
import threading
import time
from urllib.parse import quote

import pytest
from serve_kit import TOKEN, WHEN, head, paint, running, status

from avse.serve import Limits


@pytest.mark.parametrize(
    "target", [b"/api/search", b"/api/images?path=x.png&sha256=" + b"0" * 64 + b"&modified=" + quote(WHEN).encode()]
)
def test_bodies_beyond_the_limit(index, target):
    with running(index, token=TOKEN, limits=Limits(upload_bytes=50_000)) as server:
        declared = head("POST", target, b"Content-Type: application/json", b"Content-Length: 50001")
        assert status(server.raw(declared)) == 413  # before a byte of it came
        for lie in (b"-1", b"1e9", b"99999999999999999999", b"0x10"):
            assert status(server.raw(head("POST", target, b"Content-Length: " + lie))) in (400, 413)
        chunked = head("POST", target, b"Content-Type: application/json", b"Transfer-Encoding: chunked")
        part = b"2710\r\n" + b"[" * 10_000 + b"\r\n"
        assert status(server.raw(chunked + 6 * part)) == 413  # never ends
        boundary = b"Content-Type: multipart/form-data; boundary=b"
        file = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + b"x" * 60_000
        chunks = b"".join(
            b"%x\r\n%b\r\n" % (len(file[at : at + 9999]), file[at : at + 9999]) for at in range(0, len(file), 9999)
        )
        assert status(server.raw(head("POST", b"/api/search", boundary, b"Transfer-Encoding: chunked") + chunks)) == 413
        small = server.client.post("/api/search", json={"query": "a" * 999})
        assert small.status_code == 200
        server.lives()


def test_bodies_of_many_parts_are_not_taken_apart(server):
    began = time.monotonic()
    many = b"{" + b",".join(b'"%x":0' % at for at in range(300_000)) + b"}"
    for body in (many, b'{"query":[' + b"[]," * 500_000 + b"[]]}", b'{"where":"' + b"\\n" * 500_000 + b'"}'):
        answer = server.client.post("/api/search", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400 and "too many parts" in answer.json()["detail"]
    few = server.client.post("/api/search", json={f"field{at}": 0 for at in range(1000)})
    assert few.status_code == 422 and few.json()["detail"].count("Extra inputs") == 5
    long = {"query": 'é\U0001f600\n"' * 250, "where": "folder = '" + "\\" * 900 + "'"}  # as long as may be
    assert server.client.post("/api/search", json=long).status_code == 200
    for path, method in (("/api/session", "POST"), ("/api/images/x", "DELETE"), ("/api/nothing", "POST")):
        answer = server.client.request(method, path, content=b"[" + b"[]," * 2000 + b"1]")
        assert answer.status_code == 413 and "4,096 bytes" in answer.json()["detail"]
        chunked = head(method, path.encode(), b"Content-Type: application/json", b"Transfer-Encoding: chunked")
        answer = server.raw(chunked + b"3e8\r\n" + b"[" * 1000 + b"\r\n" + b"1000\r\n" + b"[" * 4096 + b"\r\n")
        assert status(answer) in ((413,) if path == "/api/session" else (413, 404)), answer[:200]
    assert time.monotonic() - began < 5
    server.lives()


def test_what_all_hold_together_is_bounded(index, photos):
    small, large = photos / "land" / "00 ü.png", paint(photos / "large.png", 1, size=(300, 300))
    with running(index, token=TOKEN, limits=Limits(held_bytes=200_000)) as server:
        for _ in range(3):  # what was held is let go
            answer = server.client.post("/api/search", files={"image": b"x" * 250_000})
            assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
            answer = server.client.post(
                "/api/search", files={"image": large}
            )  # small, but decoded it has 360,000 bytes
            assert len(large) < 100_000 and answer.status_code == 429
            coded = base64.b64encode(b"x" * 120_000).decode()
            assert server.client.post("/api/search", json={"image": coded}).status_code == 429
            assert server.client.post("/api/search", files={"image": small.read_bytes()}).status_code == 200
        waiting = [socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(2)]
        for connection in waiting:
            connection.sendall(head("POST", b"/api/search", b"Content-Length: 100001") + b"x" * 100_000)
        time.sleep(0.2)
        assert server.client.post("/api/search", json={"query": "x" * 500}).status_code == 429
        for connection in waiting:
            connection.close()
        time.sleep(0.2)
        server.lives()


def test_too_many_at_once(index):
    encode, gate = index.encoder.encode_texts, threading.Event()

    def wait(texts):
        gate.wait(20)
        return encode(texts)

    index.encoder.encode_texts = wait
    for limits in (Limits(in_flight=4), Limits(waiting=2, batch=1)):
        gate.clear()
        with running(index, limits=limits) as server:
            answers = []

            def ask(answers=answers):
                answers.append(server.client.post("/api/search", json={"query": "x"}))

            threads = [threading.Thread(target=ask) for _ in range(12)]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 10
            while len(answers) < 8 and time.monotonic() < deadline:
                time.sleep(0.02)
            refused = list(answers)
            assert server.client.get("/healthz").status_code == 200  # this one always answers
            gate.set()
            for thread in threads:
                thread.join()
            assert refused and all(answer.status_code == 429 for answer in refused)
            assert all(answer.headers["retry-after"] == "1" for answer in refused)
            assert sorted({answer.status_code for answer in answers}) == [200, 429]
            server.lives()


def test_connections_beyond_the_limit(index):
    with running(index, limits=Limits(connections=10)) as server:
        held = [socket.create_connection(("127.0.0.1", server.port), 20) for _ in range(12)]
        answer = server.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert status(answer) == 503
        for connection in held:
            connection.close()
        time.sleep(0.1)
        server.lives()
