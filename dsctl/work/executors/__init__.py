"""The executors of jobs. Tasks and receipts are plain data, so any engine that can run a function can do them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from dsctl.core.choices import suggestion
from dsctl.core.errors import PlanError, UsageError
from dsctl.core.progress import Advance
from dsctl.plan.plan import Job
from dsctl.work.executors.processes import Processes
from dsctl.work.executors.ray import Ray
from dsctl.work.executors.serial import Serial
from dsctl.work.tasks import Context, Receipt, Seal


class Executor(Protocol):
    """Takes tasks, gives receipts, in any order."""

    capacity: int

    def submit(self, task: Job | Seal) -> None:
        """Take one more task; never called with more than `capacity` tasks outstanding."""

    def next(self, progress: Advance) -> Receipt:
        """Wait until one task ends; meanwhile report the bytes that are done.

        Raises:
            DsctlError: the task failed, or its worker died.
        """

    def close(self) -> None:
        """End all workers immediately."""


EXECUTORS: dict[str, Callable[[Context, int], Executor]] = {"serial": Serial, "processes": Processes, "ray": Ray}
ENGINES = ("processes", "ray")
CPU, AUTO = "cpu", "auto"
DEVICES = (CPU, "cuda", AUTO)


def named_devices(text: str) -> tuple[int, ...] | None:
    """The device numbers in cuda:1 or cuda:0,1; empty for cuda, which means all; None for cpu and auto.

    Raises:
        UsageError: the text is not a device.
    """
    if text in (CPU, AUTO):
        return None
    kind, colon, numbers = text.partition(":")
    if kind != "cuda" or (colon and not all(n.isascii() and n.isdecimal() for n in numbers.split(","))):
        raise UsageError(f"--device: unknown device {text!r}", hint=suggestion(text, (*DEVICES, "cuda:1", "cuda:0,1")))
    return tuple(int(n) for n in numbers.split(",")) if colon else ()


def choose_devices(text: str, engine: str = "processes") -> tuple[str, ...]:
    """cpu, cuda, cuda:1 or cuda:0,1 as torch's device names; those of a cluster are known when it is joined.

    Raises:
        UsageError: the text is not a device. PlanError: this machine does not have the device.
    """
    numbers = named_devices(text)
    if numbers is None:
        return ("cpu",)
    if engine == "ray":
        return ("cuda",)
    there = len(cuda_devices())
    chosen = numbers or tuple(range(there))
    if not there or max(chosen) >= there:
        what = f"this machine has {there:,} CUDA device{'' if there == 1 else 's'}"
        raise PlanError(f"--device {text}: {what}", hint="--device cpu works anywhere")
    return tuple(f"cuda:{n}" for n in chosen)


def cuda_devices() -> tuple[str, ...]:
    """The CUDA devices of this machine, by torch's names."""
    import torch

    return tuple(f"cuda:{n}" for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0))


def choose(
    context: Context,
    workers: int,
    worker_bytes: int,
    engine: str = "processes",
    address: str = "",
    asked: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Executor:
    """The executor of a run: processes of this machine, or the cluster at an address if the engine is `ray`.

    `workers` are the processes; `asked` are the tasks that run at once on a cluster, 0 for as many as it can run.
    `worker_bytes` is the memory of each. `say` is called with a line of text when a cluster has to be waited for.

    Raises:
        PlanError, WorkError: there is no such cluster, or its nodes are too small.
    """
    if engine == "ray":
        return Ray(context, asked, address, worker_bytes, say)
    return EXECUTORS["processes" if workers > 1 else "serial"](context, workers)
