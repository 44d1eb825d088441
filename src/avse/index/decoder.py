"""A process that reads pictures for `feed`: told their paths, it lays their pixels into shared memory.

Speaks JSON over a socket. Knows `avse.images` and payloads; no encoder, no store and no torch.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avse.images import PixelSpec, open_image, read_image, to_pixels
from avse.index.contract import Payload
from avse.index.pictures import picture_payload, reason_of

_NICE = 10
"""The encoder's threads come first: they wait for each other, so that one held up by a decoder holds up all."""


def read_picture(name: str, path: Path, spec: PixelSpec) -> tuple[NDArray[np.float32], Payload]:
    """Return the pixels (3, H, W) of a file and what an index keeps of it; its header is read once.

    Raises:
        ImageError: It cannot be read.
        OSError: Likewise.
    """
    with open_image(path) as opened:
        payload = picture_payload(name, path, opened)
        return to_pixels(read_image(opened, draft=spec.draft), spec), payload


def serve(socket: int, memory: int) -> None:
    """Answer tasks until the other end is closed.

    First comes {"spec": fields of a PixelSpec, "shape": [n, 3, H, W] of the memory, "timeout": seconds}, then tasks
    [row, name, path], each answered by [payload or null, reason or null] once the pixels are in their row. The system
    ends this process by SIGALRM at a picture that takes longer.

    Args:
        socket: descriptor of a connected socket.
        memory: descriptor of the memory for float32 pixels.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to a whole terminal; the socket tells this process
    with suppress(OSError):
        os.nice(_NICE)
    with suppress(EOFError, ConnectionError), Connection(socket) as connection:
        setup = json.loads(connection.recv_bytes())
        spec, timeout = _spec(setup["spec"]), float(setup["timeout"])
        shape = tuple(setup["shape"])
        rows: NDArray[np.float32] = np.frombuffer(mmap.mmap(memory, 4 * int(np.prod(shape))), np.float32).reshape(shape)
        connection.send_bytes(b"ready")
        while True:
            row, name, path = json.loads(connection.recv_bytes())
            answer: tuple[Payload | None, str | None]
            signal.setitimer(signal.ITIMER_REAL, timeout)
            try:
                rows[row], payload = read_picture(name, Path(path), spec)
                answer = payload, None
            except Exception as error:  # decoders raise anything on damaged files
                answer = None, reason_of(error)
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(json.dumps(answer).encode())


def _spec(values: dict[str, Any]) -> PixelSpec:
    return PixelSpec(**{**values, **{name: tuple(values[name]) for name in ("size", "mean", "std")}})
