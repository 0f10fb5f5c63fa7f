"""Jobs that move and patch bytes, on threads of this process: nothing in them holds the interpreter for long."""

from __future__ import annotations

from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial

from dsctl.core.errors import Interrupted
from dsctl.core.progress import Advance
from dsctl.plan.plan import Job
from dsctl.stores.threads import Threads as Pool
from dsctl.work.tasks import Context, Receipt, Seal

# Seconds between reports of what is done.
GLANCE = 0.2


class ByteThreads:
    """Does jobs of `dsctl.work.byte_jobs` on threads."""

    def __init__(self, context: Context, workers: int) -> None:
        self.capacity = workers
        self._context = context
        self._pool = Pool(workers)
        self._running: set[Future[Receipt]] = set()
        self._advanced: deque[int] = deque()

    def submit(self, task: Job | Seal) -> None:
        """Take one more task."""
        self._running.add(self._pool.submit(partial(self._do, task)))

    def next(self, progress: Advance) -> Receipt:
        """Wait until one task ends; meanwhile report the bytes that are done.

        Raises:
            DsctlError: the task failed.
        """
        while True:
            done, _ = wait(self._running, GLANCE, FIRST_COMPLETED)
            while self._advanced:
                progress(self._advanced.popleft())
            if done:
                ended = done.pop()
                self._running.discard(ended)
                return ended.result()

    def close(self) -> None:
        """Start no further task, and let the running ones end at their next piece."""
        self._pool.end()

    def _do(self, task: Job | Seal) -> Receipt:
        # Loaded late: a run whose work is done needs neither.
        from dsctl.work.byte_jobs import perform
        from dsctl.work.sealing import seal

        if isinstance(task, Seal):
            return seal(task, self._context, self._heed)
        return perform(task, self._context, self._heed)

    def _heed(self, nbytes: int) -> None:
        if not self._pool.going():
            raise Interrupted("the run has ended")
        if nbytes:
            self._advanced.append(nbytes)
