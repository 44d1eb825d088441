"""Before the routes: who may ask, how much, how long; after them: headers, a line of log, metrics. Knows no index."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from avse.serve.limits import Limits
from avse.serve.metrics import Metrics

COOKIE = "avse_session"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_OPEN = frozenset({"/", "/healthz", "/openapi.json", "/api/session"})
_LARGE = frozenset({"/api/search", "/api/images"})
_SMALL_BYTES = 4 << 10  # of a body to all other paths
_ALLOWED = {"methods": "GET, POST, DELETE", "headers": "Authorization, Content-Type"}
_PREFLIGHT = Response(None, 204, {f"access-control-allow-{name}": said for name, said in _ALLOWED.items()})
_COUNTED = ("/api/", "/thumbnails/")
_Hold = Callable[[int], None]
_requests = logging.getLogger("avse.serve.requests")
_log = logging.getLogger(__name__)


class Keys:
    """The token, compared in constant time, and what a browser's cookie holds in its place."""

    def __init__(self, token: str | None) -> None:
        """Take the token; None: there is none."""
        self._token = None if token is None else token.encode()
        self.session = hmac.new(self._token or secrets.token_bytes(32), b"avse session", hashlib.sha256).hexdigest()

    @property
    def wanted(self) -> bool:
        """Whether there is a token."""
        return self._token is not None

    def fits(self, given: str) -> bool:
        """Tell whether this is the token."""
        return self._token is not None and hmac.compare_digest(given.encode("utf-8", "replace"), self._token)

    def opens(self, headers: Headers) -> bool:
        """Tell whether a request brings the token, or the cookie that stands for it."""
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self.fits(given.strip()):
            return True
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        return self.wanted and hmac.compare_digest(cookie.encode("utf-8", "replace"), self.session.encode())


class Gate:
    """The ASGI middleware around all routes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        limits: Limits,
        metrics: Metrics,
        origins: frozenset[str],
        any_host: bool,
    ) -> None:
        """Keep the rules.

        Args:
            app: What is behind.
            keys: The token.
            limits: Of body, time and requests in flight.
            metrics: Told of every request.
            origins: Pages of other origins that may ask.
            any_host: Whether the Host header may name anything but this machine's loopback.
        """
        self._app, self._keys, self._limits, self._metrics = app, keys, limits, metrics
        self._origins, self._any_host, self._active, self._held = origins, any_host, 0, 0
        self._headers = {
            "content-security-policy": POLICY,
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "referrer-policy": "no-referrer",
            "cross-origin-resource-policy": "same-origin",
            "cross-origin-opener-policy": "same-origin",
            "cache-control": "private, no-cache",  # kept, but asked for again: static files and thumbnails have an ETag
            **({"vary": "Origin"} if origins else {}),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] == "websocket":
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, own = Headers(scope=scope), self._headers
        if allowed := headers.get("origin") in self._origins:
            own = {**own, "access-control-allow-origin": headers["origin"]}
        preflight = allowed and scope["method"] == "OPTIONS" and "access-control-request-method" in headers
        passage = _Passage(scope, receive, send, own, self._limits, self._hold)
        counted = passage.path.startswith(_COUNTED)
        self._active += counted
        try:
            await passage.run(_PREFLIGHT if preflight else self._app, self._refusal(passage, headers, preflight))
        finally:
            self._active -= counted
            self._held -= passage.held
            seconds = time.perf_counter() - passage.began
            self._metrics.observe(passage.method if passage.known else "OTHER", passage.route, passage.status, seconds)
            passage.tell(seconds)

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > self._limits.held_bytes:
            raise busy("too many bodies and pictures at once")

    def _refusal(self, passage: _Passage, headers: Headers, preflight: bool) -> HTTPException | None:
        if not self._any_host and _host(headers.get("host", "")) not in LOOPBACK:
            return HTTPException(400, "the Host header names another machine than this one")
        guarded = needs_token(passage.path)
        if (guarded or passage.method not in _SAFE) and self._is_foreign(headers):
            return HTTPException(403, "a page of another origin may not ask (--cors ORIGIN allows one)")
        if self._keys.wanted and guarded and not preflight and not self._keys.opens(headers):
            return HTTPException(401, "the server's token is wanted", {"WWW-Authenticate": "Bearer"})
        if self._active > self._limits.in_flight:
            return busy("too many requests at once")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > passage.most:
            return too_large(passage.most)
        return None

    def _is_foreign(self, headers: Headers) -> bool:
        """Tell whether the page of another origin asks that is not allowed to."""
        if (origin := headers.get("origin")) is None:
            return headers.get("sec-fetch-site") in ("cross-site", "same-site")  # same-site: another port, say
        return origin not in self._origins and origin.partition("://")[2] != headers.get("host")


def needs_token(path: str) -> bool:
    """Tell whether a path is only for those who bring the token, where there is one: all are but a few."""
    return path not in _OPEN and not path.startswith("/static/")


def busy(why: str) -> HTTPException:
    """Return the answer to one too many."""
    return HTTPException(429, f"{why}: try again in a second", {"Retry-After": "1"})


def too_large(most: int) -> HTTPException:
    """Return the answer to a body beyond its limit."""
    return HTTPException(413, f"the request's body is larger than {most:,} bytes")


class _Passage:
    """One request on its way through: counts what comes and goes, and ends it in time."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str], limits: Limits, hold: _Hold
    ) -> None:
        self.began = time.perf_counter()
        self.id, self.status, self.sent, self.held = secrets.token_hex(6), 499, 0, 0
        self.method, self.path, self._hold = scope["method"], _path(scope), hold
        self.most = limits.upload_bytes if self.path in _LARGE else min(_SMALL_BYTES, limits.upload_bytes)
        self._scope, self._receive, self._send, self._limits = scope, receive, send, limits
        own = {**headers, "x-request-id": self.id}
        self._headers = [(name.encode(), value.encode()) for name, value in own.items()]
        self._received, self._whole, self._started, self._late = 0, False, False, False
        scope.setdefault("state", {}).update(told={}, hold=self.hold)

    @property
    def route(self) -> str:
        """The template of the route, the same for all ids."""
        route = getattr(self._scope.get("route"), "path", None)
        return str(route or ("/static" if self.path.startswith("/static/") else "none"))

    @property
    def known(self) -> bool:
        """Whether the method is one of HTTP's."""
        return self.method in (*_SAFE, "POST", "DELETE", "PUT", "PATCH")

    async def run(self, app: ASGIApp, refusal: HTTPException | None) -> None:
        """Answer."""
        task = asyncio.current_task()
        timer = asyncio.get_running_loop().call_later(self._limits.seconds, self._expire, task)
        try:
            if refusal is not None:
                await self._refuse(refusal)
            else:
                await app(self._scope, self.receive, self.send)
        except HTTPException as error:
            await self._refuse(error)
        except asyncio.CancelledError:
            if not self._late:
                raise
            if (uncancel := getattr(task, "uncancel", None)) is not None:
                uncancel()
            status = 503 if self._whole else 408
            await self._refuse(HTTPException(status, f"not done within {self._limits.seconds:g} seconds"))
        except Exception:
            _log.exception("request %s failed", self.id)
            await self._refuse(HTTPException(500, f"an error in the server; its log has it under {self.id}"))
        finally:
            timer.cancel()

    def _expire(self, task: asyncio.Task[Any] | None) -> None:
        self._late = True
        if task is not None:
            task.cancel()

    async def _refuse(self, error: HTTPException) -> None:
        if self._started:
            raise ConnectionAbortedError(f"request {self.id} was given up in the middle of its answer")
        answer = JSONResponse({"detail": error.detail}, error.status_code, error.headers)
        await answer(self._scope, self._receive, self.send)

    def hold(self, size: int) -> None:
        """Count bytes that the request keeps until its end; HTTPException (429) where all together keep too much."""
        self.held += size
        self._hold(size)

    async def receive(self) -> Message:
        """Take a part of the body, and count it."""
        message = await self._receive()
        self._received += (size := len(message.get("body", b"")))
        self._whole = self._whole or not message.get("more_body", False)
        if self._received > self.most:
            raise too_large(self.most)
        if size:
            self.hold(size)
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer under the headers that all have."""
        if message["type"] == "http.response.start":
            self._started, self.status = True, message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *self._headers]}
        self.sent += len(message.get("body", b""))
        await self._send(message)

    def tell(self, seconds: float) -> None:
        """Write the line of log."""
        said = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "ms": round(1e3 * seconds, 1),
            "bytes": self.sent,
            "request": self.id,
            **self._scope["state"].get("told", {}),
        }
        _requests.info(json.dumps(said, ensure_ascii=True))


def _path(scope: Scope) -> str:
    """Return the path that the routes see, below the root of a proxy or of an application around this one."""
    path, root = str(scope["path"]), scope.get("root_path", "")
    return path[len(root) :] if path.startswith(f"{root}/") else path


def _host(header: str) -> str:
    """Return the name in a Host header, without its port.

    >>> _host("[::1]:8377"), _host("localhost:8377"), _host("127.0.0.1")
    ('::1', 'localhost', '127.0.0.1')
    """
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()
