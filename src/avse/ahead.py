"""Make things before they are asked for, in a thread. Knows nothing of what they are."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_END = object()


class Ahead(Generic[_T]):
    """What an iterable yields, in its order, made by a thread up to `depth` items before it is asked for.

    The thread starts at once. An error of the iterable is raised where its item would have come. Closing it, its
    end, or nobody holding it any more ends the thread.

    >>> list(Ahead(range(4)))
    [0, 1, 2, 3]
    """

    def __init__(self, items: Iterable[_T], depth: int = 2) -> None:
        self._made: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(max(1, depth))
        self._closed = threading.Event()
        arguments = (items, self._made, self._closed)  # without this object, which would never be let go
        self._thread = threading.Thread(target=_make, args=arguments, name="ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[_T]:
        """Return itself."""
        return self

    def __next__(self) -> _T:
        """Return the next item, waiting for it."""
        if self._closed.is_set():
            raise StopIteration
        value, error = self._made.get()
        if value is _END:
            self.close()
            raise error or StopIteration
        return value

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if not sys.is_finalizing():  # then it is stopped already, and from Python 3.13 on never ends
            self._thread.join()

    def __del__(self) -> None:
        """End the thread."""
        self.close()


def _make(items: Iterable[Any], made: queue.Queue[Any], closed: threading.Event) -> None:
    def put(value: Any, error: BaseException | None = None) -> bool:
        while not closed.is_set():
            try:
                made.put((value, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    try:
        if all(put(item) for item in items):
            put(_END)
    except BaseException as error:  # whatever it is, it belongs to whoever asks
        put(_END, error)
