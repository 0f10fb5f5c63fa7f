"""Tasks in this process, one at a time."""

from __future__ import annotations

from collections import deque

from dsctl.core.progress import Advance
from dsctl.plan.plan import Job
from dsctl.work.tasks import Context, Receipt, Seal


class Serial:
    """Does each task when its receipt is requested."""

    capacity = 1

    def __init__(self, context: Context, workers: int = 1) -> None:
        import torch

        torch.set_num_threads(1)
        self._context = context
        self._tasks: deque[Job | Seal] = deque()

    def submit(self, task: Job | Seal) -> None:
        self._tasks.append(task)

    def next(self, progress: Advance) -> Receipt:
        from dsctl.work.job import perform

        return perform(self._tasks.popleft(), self._context, progress)

    def close(self) -> None:
        from dsctl.work.job import release

        self._tasks.clear()
        release()
