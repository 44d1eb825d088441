"""Pictures to an encoder as fast as it takes them: files are read by processes of their own, encoded in this one.

Memory is fixed: a ring of batches of pixels, shared with the processes, whatever the number of pictures. A file that
kills its process, or takes too long, is set aside and the process replaced. Knows no store and no model.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import cast

import numpy as np
from numpy.typing import NDArray

from avse.images import PixelSpec
from avse.index.contract import Encoder, Payload, PixelEncoder, Skipped
from avse.index.pictures import Picture, embed_pictures

TIMEOUT = 60.0
"""Seconds that one picture may take to read."""
_BATCHES = 3
"""In the ring: one is encoded, one is ready, one is filled."""
_MOST_WORKERS = 16
_PROGRAM = """
import sys
sys.path[:] = {path!r}
from avse.index.decoder import serve
serve(int(sys.argv[1]), int(sys.argv[2]))
"""
"""What a process runs. Unlike multiprocessing's it imports nothing of the caller's main program, which may hold torch
and need not be written for being imported again."""
_Todo = tuple[str, Path]


def embed_files(
    encoder: Encoder,
    todo: Iterable[_Todo],
    *,
    batch_size: int = 32,
    workers: int | None = None,
    timeout: float = TIMEOUT,
) -> Iterator[list[Picture | Skipped]]:
    """Embed picture files batch by batch; each item of ``todo`` is in one batch, as a picture or set aside.

    Args:
        encoder: Where it is a `PixelEncoder` other processes read the files; else it reads them itself, here.
        todo: (id, path), taken as it is needed.
        batch_size: Pictures encoded together.
        workers: Processes that read files; 0: this one does, without a limit of time. By default as many as there are
            cores, at most 16; none on Windows.
        timeout: Seconds that one picture may take to read.

    Yields:
        Batches in the order in which they are ready. The processes end with the generator.

    Raises:
        ValueError: ``batch_size`` or ``timeout`` is not above 0, or ``workers`` below it.
        RuntimeError: The processes cannot be started.
    """
    if batch_size < 1 or timeout <= 0 or (workers or 0) < 0:
        raise ValueError(f"batch_size={batch_size}, timeout={timeout}, workers={workers}: above 0 (workers: or 0)")
    spec: PixelSpec | None = getattr(encoder, "pixels", None)
    count = _cores() if workers is None else workers
    if spec is None or count == 0 or sys.platform == "win32":
        items = iter(todo)
        while part := list(islice(items, batch_size)):
            found, lost = embed_pictures(encoder.encode_images, part)
            yield [*found, *lost]
        return
    with _Readers(spec, batch_size, count, timeout) as readers:
        for batch, pixels in readers.read(iter(todo)):
            yield _encoded(cast("PixelEncoder", encoder), batch, pixels)


def _encoded(
    encoder: PixelEncoder, batch: list[tuple[str, Payload] | Skipped], pixels: NDArray[np.float32]
) -> list[Picture | Skipped]:
    """Encode a batch's pixels (n, 3, H, W) without the rows of those set aside."""
    kept = [row for row, item in enumerate(batch) if not isinstance(item, Skipped)]
    blocks = iter(encoder.encode_pixels(pixels if len(kept) == len(pixels) else pixels[kept]) if kept else ())
    return [item if isinstance(item, Skipped) else Picture(item[0], next(blocks), item[1]) for item in batch]


@dataclass
class _Batch:
    """A batch in the ring: where its rows begin, what is known of each, how many are still unknown."""

    first: int
    items: list[tuple[str, Payload] | Skipped | None] = field(default_factory=list)
    unknown: int = 0


@dataclass
class _Task:
    """One picture on its way, and its place."""

    name: str
    path: Path
    batch: _Batch
    at: int

    def settle(self, item: tuple[str, Payload] | Skipped) -> None:
        """Note what became of it."""
        self.batch.items[self.at] = item
        self.batch.unknown -= 1


class _Worker:
    """A reading process, its end of a socket, and what it was asked for and has not answered, in order."""

    def __init__(self, memory: int, setup: bytes) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            ends = theirs.fileno(), memory
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(path=sys.path), *map(str, ends)],
                pass_fds=ends,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # C libraries write their warnings there
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        self.connection = Connection(ours.detach())
        self.asked: deque[_Task] = deque()
        self.ready = False
        self._send(setup)

    def ask(self, task: _Task) -> None:
        """Send a picture."""
        self.asked.append(task)
        self._send(json.dumps([task.batch.first + task.at, task.name, str(task.path)]).encode())

    def hear(self) -> bool:
        """Take the answers that are there; False where the process has ended."""
        try:
            while self.connection.poll():
                answer = self.connection.recv_bytes()
                if not self.ready:
                    self.ready = True
                    continue
                payload, reason = json.loads(answer)
                task = self.asked.popleft()
                task.settle(Skipped(task.name, reason) if payload is None else (task.name, payload))
        except (EOFError, ConnectionError):
            return False
        return True

    def end(self) -> None:
        """End the process at once; it holds nothing that is worth keeping."""
        self.connection.close()
        self.process.kill()
        self.process.wait()

    def _send(self, message: bytes) -> None:
        with suppress(ConnectionError):  # it has ended, which `hear` finds out
            self.connection.send_bytes(message)


class _Readers:
    """The ring of batches and the processes that fill it."""

    def __init__(self, spec: PixelSpec, batch_size: int, count: int, timeout: float) -> None:
        shape = _BATCHES * batch_size, 3, *spec.size
        self._size, self._count, self._timeout = batch_size, count, timeout
        self._setup = json.dumps({"spec": asdict(spec), "shape": shape, "timeout": timeout}).encode()
        self._memory = _shared_memory(4 * int(np.prod(shape)))
        self._pixels = np.frombuffer(mmap.mmap(self._memory, 0), np.float32).reshape(shape)
        self._each = max(2, -(-batch_size // count) + 1)  # asked of a process: enough for while a batch is encoded
        self._workers: list[_Worker] = []
        self._free = deque(number * batch_size for number in range(_BATCHES))
        self._open: list[_Batch] = []

    def __enter__(self) -> _Readers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.end()
        os.close(self._memory)

    def read(self, todo: Iterator[_Todo]) -> Iterator[tuple[list[tuple[str, Payload] | Skipped], NDArray[np.float32]]]:
        """Yield batches: what became of each picture, and their pixels (n, 3, H, W), good until the next batch."""
        more = True
        while True:
            more = more and self._ask(todo)
            done = (batch for batch in self._open if not batch.unknown and (len(batch.items) == self._size or not more))
            ready = next(done, None)
            if ready is not None:
                self._open.remove(ready)
                rows = slice(ready.first, ready.first + len(ready.items))
                yield cast("list[tuple[str, Payload] | Skipped]", ready.items), self._pixels[rows]
                self._free.append(ready.first)
            elif not self._open:
                return
            self._hear(None if ready is None else 0)

    def _ask(self, todo: Iterator[_Todo]) -> bool:
        """Give the processes work while they and the ring have room; False where ``todo`` has no more."""
        while True:
            batch = self._open[-1] if self._open and len(self._open[-1].items) < self._size else None
            idle = len(self._workers) < self._count or min(len(each.asked) for each in self._workers) < self._each
            if not idle or (batch is None and not self._free):
                return True
            if (item := next(todo, None)) is None:
                return False
            if batch is None:
                self._open.append(batch := _Batch(self._free.popleft()))
            batch.items.append(None)
            batch.unknown += 1
            self._idlest().ask(_Task(*item, batch, len(batch.items) - 1))

    def _idlest(self) -> _Worker:
        """Return the process with the least to do, a new one where all have something and there may be more."""
        worker = min(self._workers, key=lambda each: len(each.asked), default=None)
        if worker is None or (worker.asked and len(self._workers) < self._count):
            worker = _Worker(self._memory, self._setup)
            self._workers.append(worker)
        return worker

    def _hear(self, seconds: float | None) -> None:
        """Take answers, waiting so long for the first (None: as long as it takes), and replace what has ended."""
        workers = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(workers), seconds):
            worker = workers[cast("Connection", connection)]
            if not worker.hear():
                self._replace(worker)

    def _replace(self, worker: _Worker) -> None:
        """Set the picture aside that a process was at when it ended, and give the rest to another process."""
        self._workers.remove(worker)
        worker.connection.close()
        status = worker.process.wait()
        if not worker.ready:
            raise RuntimeError(
                f"a process that reads pictures did not start (exit status {status}): pass workers=0 to read them in "
                "this process"
            )
        if worker.asked:
            task = worker.asked.popleft()
            task.settle(Skipped(task.name, self._cause(status)))
        if worker.asked:
            self._workers.append(other := _Worker(self._memory, self._setup))
            for task in worker.asked:
                other.ask(task)

    def _cause(self, status: int) -> str:
        if status == -signal.SIGALRM:
            return f"not read within {self._timeout:g} s"
        name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return f"the process that read it died ({name})"


def _cores() -> int:
    """Return how many cores this process may use, at most `_MOST_WORKERS`."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(count, _MOST_WORKERS)


def _shared_memory(size: int) -> int:
    """Return a descriptor of so many bytes of memory without a name: it goes with the last process that has it."""
    if sys.platform == "linux":
        descriptor = os.memfd_create("avse")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor
