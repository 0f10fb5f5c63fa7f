"""Threads for work that waits on a network. They are abandoned if the block that uses them ends early."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """A number of threads that do tasks in the order given. They do not keep the process alive."""

    def __init__(self, count: int) -> None:
        self._ended = Event()
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Callable[[], T]) -> Future[T]:
        """Submit a task; return the future of its result or exception."""
        future: Future[T] = Future()
        self._tasks.put((future, task))
        return future

    def going(self) -> bool:
        """Whether the results of the tasks are still wanted."""
        return not self._ended.is_set()

    def end(self, patience: float = 0) -> None:
        """Start no further task, and wait up to `patience` seconds for the running ones, which can check `going`."""
        self._ended.set()
        while True:
            try:
                waiting = self._tasks.get_nowait()
            except Empty:
                break
            if waiting is not None and waiting[0].cancel():
                waiting[0].set_running_or_notify_cancel()
        for _ in self._threads:
            self._tasks.put(None)
        last = time.monotonic() + patience
        for thread in self._threads if patience else ():
            thread.join(max(0.0, last - time.monotonic()))

    def _work(self) -> None:
        while (waiting := self._tasks.get()) is not None:
            future, task = waiting
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(task())
            except BaseException as error:  # noqa: BLE001  the caller of the future gets it
                future.set_exception(error)


@contextmanager
def threads(count: int) -> Iterator[Threads]:
    """Threads for one block."""
    pool = Threads(count)
    try:
        yield pool
    finally:
        pool.end()
