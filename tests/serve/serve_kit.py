"""A real server on a free port over a small real index, and a client of raw bytes."""

from __future__ import annotations

import importlib.util
import socket
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from PIL import Image

from avse.index import Index
from avse.serve import Limits, create_app
from avse.serve.run import Server, listen

_spec = importlib.util.spec_from_file_location("index_kit", Path(__file__).parent.parent / "index" / "conftest.py")
assert _spec and _spec.loader
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
ColourEncoder, naive_score = _module.ColourEncoder, _module.naive_score

TOKEN = "correct-horse"
WHEN = "2019-06-08T13:20:00.000001+00:00"
AUTH = f"Host: 127.0.0.1\r\nAuthorization: Bearer {TOKEN}\r\n".encode()


class Running(NamedTuple):
    """A server that runs, its index, and a client with the token."""

    url: str
    port: int
    index: Index
    client: httpx.Client
    server: Server

    def raw(self, data: bytes, *, timeout: float = 10.0, finish: bool = False) -> bytes:
        """Send bytes as they are and return all that comes back until the server closes or is silent."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as connection:
            try:
                connection.sendall(data)
                if finish:
                    connection.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            return read_all(connection)

    def lives(self) -> None:
        """Check that it still answers as it should."""
        assert self.client.get("/healthz").json()["status"] == "ok"
        assert self.client.post("/api/search", json={"query": "a dog"}).status_code == 200


def read_all(connection: socket.socket) -> bytes:
    """Read until the end; a reset ends, too."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except OSError:
        pass
    return b"".join(parts)


@contextmanager
def running(index: Index, **options: Any):
    """Serve an index in a thread."""
    limits = options.setdefault("limits", Limits())
    ready = threading.Event()
    sock = listen("127.0.0.1", 0)
    port = sock.getsockname()[1]
    server = Server(create_app(index, **options), limits, ready.set)
    thread = threading.Thread(target=server.run_on, args=(sock,))
    thread.start()
    assert ready.wait(20)
    token = options.get("token")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=20) as client:
            yield Running(url, port, index, client, server)
    finally:
        server.stop()
        thread.join(20)
        assert not thread.is_alive()


def paint(path: Path, number: int, size: tuple[int, int] = (40, 60)) -> bytes:
    """Write a picture of noise and return its bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (2, 2, 3), np.uint8)
    Image.fromarray(pixels).resize(size[::-1], Image.Resampling.NEAREST).save(path)
    return path.read_bytes()


def head(method: str, target: bytes, *more: bytes) -> bytes:
    """Return the head of a request with the token."""
    lines = b"".join(line + b"\r\n" for line in more)
    return method.encode() + b" " + target + b" HTTP/1.1\r\n" + AUTH + b"Connection: close\r\n" + lines + b"\r\n"


def status(answer: bytes) -> int:
    """Return the status of an answer, 0 where there is none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1") else 0
