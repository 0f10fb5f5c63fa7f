"""Tasks on threads of this process."""

from __future__ import annotations

from functools import partial
from queue import SimpleQueue

from dsctl.core.progress import Advance
from dsctl.plan.plan import Job
from dsctl.stores.threads import Threads
from dsctl.work.tasks import Context, Receipt, Seal

# Seconds that running tasks are given to notice that they are no longer wanted.
PATIENCE = 5.0


class Stopped(Exception):
    """A task is no longer wanted."""


class Serial:
    """As many tasks at once as a worker has threads; only this thread reports their progress."""

    def __init__(self, context: Context, workers: int = 1) -> None:
        import torch

        torch.set_num_threads(1)
        self.capacity = context.threads
        self._context = context
        self._threads = Threads(context.threads)
        self._said: SimpleQueue[int | Receipt | BaseException] = SimpleQueue()

    def submit(self, task: Job | Seal) -> None:
        self._threads.submit(partial(self._perform, task))

    def _perform(self, task: Job | Seal) -> None:
        from dsctl.work.job import perform

        try:
            self._said.put(perform(task, self._context, self._advance))
        except BaseException as error:  # noqa: BLE001  the driver raises it
            self._said.put(error)

    def _advance(self, nbytes: int) -> None:
        if not self._threads.going():
            raise Stopped
        if nbytes:
            self._said.put(nbytes)

    def next(self, progress: Advance) -> Receipt:
        while True:
            said = self._said.get()
            if isinstance(said, Receipt):
                return said
            if isinstance(said, BaseException):
                raise said
            progress(said)

    def close(self) -> None:
        self._threads.end(PATIENCE)
