"""Who does the jobs. Tasks and receipts are plain data, so any engine that can run a function can do them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from dsctl.executors.processes import Processes, prepare
from dsctl.executors.ray import Ray
from dsctl.executors.serial import Serial

if TYPE_CHECKING:
    from dsctl.plan import Job
    from dsctl.tasks import Context, Progress, Receipt, Seal


class Executor(Protocol):
    """Takes tasks, gives receipts, in any order."""

    capacity: int

    def submit(self, task: Job | Seal) -> None:
        """Take one more task; never called with more than `capacity` tasks outstanding."""

    def next(self, progress: Progress) -> Receipt:
        """Wait for one task to end; meanwhile report bytes done.

        Raises:
            DsctlError: the task failed, or its worker died.
        """

    def close(self) -> None:
        """End all workers, at once."""


__all__ = ["EXECUTORS", "Executor", "Ray", "prepare"]

EXECUTORS: dict[str, Callable[[Context, int], Executor]] = {"serial": Serial, "processes": Processes, "ray": Ray}
