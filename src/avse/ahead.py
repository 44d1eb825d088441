"""Make things before they are asked for, in a thread. Knows nothing of what they are."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")
_END = object()


def ahead(items: Iterable[_T], depth: int = 2) -> Generator[_T, None, None]:
    """Yield what an iterable yields, in its order, made by a thread up to `depth` items ahead.

    An error of the iterable is raised where its item would have come. Closing the iterator ends the thread.

    >>> list(ahead(range(4)))
    [0, 1, 2, 3]
    """
    made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(max(1, depth))
    closed = threading.Event()

    def put(value: Any, error: BaseException | None = None) -> bool:
        while not closed.is_set():
            try:
                made.put((value, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_END)
        except BaseException as error:  # whatever it is, it belongs to whoever asks
            put(_END, error)

    thread = threading.Thread(target=make, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            value, error = made.get()
            if error is not None:
                raise error
            if value is _END:
                return
            yield value
            del value
    finally:
        closed.set()
        thread.join()
