"""The one thread that owns an index and its model: what waits is answered together, changes come in turn. No HTTP."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from avse.index import Hit, Index, Query
from avse.index.asking import check_query

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class BusyError(RuntimeError):
    """The queue is full."""


class ClosedError(RuntimeError):
    """The engine takes nothing any more."""


class _Task(NamedTuple):
    """Something to do for somebody who waits in an event loop: a question, or a function of the index."""

    loop: asyncio.AbstractEventLoop
    waiter: asyncio.Future[Any]
    work: Query | Callable[[Index], Any]
    changes: bool = False


class Engine:
    """Asked from an event loop, working in its own thread; nothing else touches the index while it runs."""

    def __init__(self, index: Index, *, batch: int, waiting: int) -> None:
        """Take the index; `start` begins.

        Args:
            index: Open; it stays its owner's to close, after `close`.
            batch: How many questions are answered together at most.
            waiting: How much may be in the queue.
        """
        self.index, self._batch = index, batch
        self._queue: queue.Queue[_Task | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._run, name="avse-engine", daemon=True)
        self._open = False
        self.entries = len(index)
        self.batches: Counter[int] = Counter()  # size -> how often

    @property
    def waiting(self) -> int:
        """How much is in the queue."""
        return self._queue.qsize()

    @property
    def running(self) -> bool:
        """Whether it takes work."""
        return self._open and self._thread.is_alive()

    def start(self) -> None:
        """Begin to work."""
        self._open = True
        self._thread.start()

    def close(self) -> None:
        """Finish what was taken and stop; returns when the thread has ended."""
        running, self._open = self.running, False
        if running:
            self._queue.put(None)
            self._thread.join()

    async def search(self, query: Query) -> list[Hit]:
        """Ask the index, together with whoever asks at the same time.

        Raises:
            BusyError, ClosedError: It is not taken.
            ValueError, OSError: As `Index.search`.
        """
        hits: list[Hit] = await self._put(query)
        return hits

    async def call(self, work: Callable[[Index], _T], *, changes: bool = False) -> _T:
        """Run a function of the index in its thread, errors its own, too; after ``changes`` the entries are counted."""
        result: _T = await self._put(work, changes)
        return result

    async def _put(self, work: Query | Callable[[Index], Any], changes: bool = False) -> Any:
        if not self._open:
            raise ClosedError("the server is shutting down")
        loop = asyncio.get_running_loop()
        task = _Task(loop, loop.create_future(), work, changes)
        try:
            self._queue.put_nowait(task)
        except queue.Full:
            raise BusyError(f"{self._queue.maxsize} questions are waiting already") from None
        return await task.waiter

    def _run(self) -> None:
        while (task := self._queue.get()) is not None:
            tasks, ended = self._taken(task)
            self._answer([task for task in tasks if isinstance(task.work, Query) and self._is_sound(task, task.work)])
            for task in tasks:
                if not isinstance(task.work, Query) and not task.waiter.cancelled():
                    result, error = _tried(task.work, self.index)
                    if task.changes:
                        entries, failed = _tried(len, self.index)
                        self.entries = entries if failed is None else self.entries
                    self._settle([(task, result, error)])
            if ended:
                return

    def _taken(self, first: _Task) -> tuple[list[_Task], bool]:
        """Return what waits, and whether the end was among it."""
        tasks = [first]
        while len(tasks) < self._batch:
            try:
                task = self._queue.get_nowait()
            except queue.Empty:
                break
            if task is None:
                return tasks, True
            tasks.append(task)
        return tasks, False

    def _is_sound(self, task: _Task, query: Query) -> bool:
        """Tell whether somebody waits for a question and it can be asked; if not, it is answered."""
        if task.waiter.cancelled():
            return False
        _, error = _tried(lambda index: check_query(query, index.layout, index.location), self.index)
        if error is not None:
            self._settle([(task, None, error)])
        return error is None

    def _answer(self, tasks: list[_Task]) -> None:
        """Answer questions together; where one is bad, in halves, so that it fails alone. A broken index fails all."""
        if not tasks:
            return
        queries = [task.work for task in tasks if isinstance(task.work, Query)]
        answers, error = _tried(lambda index: index.search_many(queries), self.index)
        if error is None:
            self.batches[len(tasks)] += 1
            self._settle([(task, hits, None) for task, hits in zip(tasks, answers)])
        elif len(tasks) == 1 or isinstance(error, OSError):
            self._settle([(task, None, error) for task in tasks])
        else:
            half = len(tasks) // 2
            self._answer(tasks[:half])
            self._answer(tasks[half:])

    def _settle(self, done: list[tuple[_Task, Any, Exception | None]]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[tuple[_Task, Any, Exception | None]]] = {}
        for item in done:
            loops.setdefault(item[0].loop, []).append(item)
        for loop, items in loops.items():
            try:
                loop.call_soon_threadsafe(_wake, items)
            except RuntimeError:  # the loop has ended: nobody waits any more
                _log.info("an answer came after its event loop had ended")


def _tried(work: Callable[[Index], Any], index: Index) -> tuple[Any, Exception | None]:
    try:
        return work(index), None
    except BaseException as error:  # whoever asked gets it, in a form that a future takes and no loop ends by
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            return None, error
        return None, RuntimeError(f"{type(error).__name__}: {error}")


def _wake(items: list[tuple[_Task, Any, Exception | None]]) -> None:
    for task, result, error in items:
        if task.waiter.done():
            continue
        if error is None:
            task.waiter.set_result(result)
        else:
            task.waiter.set_exception(error)
