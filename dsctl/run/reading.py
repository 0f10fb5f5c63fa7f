"""Tasks on threads that read bytes: their results in order, and their progress. No torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from typing import TypeVar

from dsctl.core.errors import Interrupted
from dsctl.run.events import Advanced, EventReport
from dsctl.stores.threads import Threads

# Seconds between reports of progress.
GLANCE = 0.2

T = TypeVar("T")


class Reading:
    """Threads that read, and report what they have read."""

    def __init__(self, pool: Threads, report: EventReport) -> None:
        self._pool, self._report = pool, report
        self._read: deque[int] = deque()

    def heed(self, nbytes: int) -> None:
        """Count bytes that were read; raises if they are no longer wanted."""
        if not self._pool.going():
            raise Interrupted("the run has ended")
        self._read.append(nbytes)

    def results(self, tasks: Iterable[Callable[[], T]], ahead: int = 0) -> Iterator[T]:
        """The results of tasks in their order; at most `ahead` of them are begun before they are asked for, or all."""
        pending: deque[Future[T]] = deque()
        for task in tasks:
            pending.append(self._pool.submit(task))
            if ahead and len(pending) >= ahead:
                yield self._result(pending.popleft())
        while pending:
            yield self._result(pending.popleft())

    def _result(self, future: Future[T]) -> T:
        while not wait([future], GLANCE).done:
            self._tell()
        self._tell()
        return future.result()

    def _tell(self) -> None:
        nbytes = sum(self._read.popleft() for _ in range(len(self._read)))
        if nbytes:
            self._report(Advanced(nbytes))
