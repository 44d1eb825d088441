"""Runs an application under uvicorn: its connections are bounded and timed, and a signal ends it in order."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from avse.serve.limits import Limits


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0: one that is free.

    Raises:
        OSError: The port is in use, or the host is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise OSError(f"--host {host}: {error.strerror}") from error
    made = socket.socket(
        family, kind, protocol
    )  # asyncio sets TCP_NODELAY where the protocol is named: 40 ms an answer
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
    except OSError as error:
        made.close()
        raise OSError(f"{host}:{port} cannot be listened on ({error.strerror}): choose another --port") from error
    made.listen(1024)
    return made


class Server(uvicorn.Server):
    """Serves until SIGINT, SIGTERM or `stop`; what is asked then is answered, in the time a request may take."""

    def __init__(self, app: FastAPI, limits: Limits, ready: Callable[[], object]) -> None:
        """Set up; `run_on` begins.

        Args:
            app: The application.
            limits: Of connections and their heads.
            ready: Called when the first request may come.
        """
        logging.getLogger("uvicorn").setLevel(logging.ERROR)
        config = uvicorn.Config(
            app,
            http=_timed(limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=int(max(1, limits.idle_seconds)),
            timeout_graceful_shutdown=int(max(1, limits.seconds)),
            limit_concurrency=limits.connections,
            h11_max_incomplete_event_size=limits.header_bytes,
        )
        super().__init__(config)
        self._ready = ready

    def run_on(self, sock: socket.socket) -> None:
        """Serve on a socket; it is closed at the end."""
        former: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            # uvicorn raises the signal again when all is done, which then ends nothing
            former = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with contextlib.closing(sock):
                self.run([sock])
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Let `run_on` return; may be called from another thread."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell when requests may come."""
        await super().startup(sockets)
        if self.started:
            self._ready()


def _timed(limits: Limits) -> type[H11Protocol]:
    """Return uvicorn's protocol with a limit on how long a request's head may take, which it has not of its own."""

    class Timed(H11Protocol):
        _deadline: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._unwatch()

        def handle_events(self) -> None:
            super().handle_events()
            if self.cycle is not None and not self.cycle.response_complete:
                self._unwatch()

        def on_response_complete(self) -> None:
            self._unwatch()
            self._watch()
            super().on_response_complete()

        def _watch(self) -> None:
            self._deadline = self.loop.call_later(limits.idle_seconds, self._too_slow)

        def _unwatch(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()

        def _too_slow(self) -> None:
            if not self.transport.is_closing():
                if self.conn.our_state is h11.IDLE and self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
                    self.transport.write(
                        b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
                    )
                self.transport.close()

    return Timed
