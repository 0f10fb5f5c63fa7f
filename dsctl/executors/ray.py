"""The tasks of a Ray cluster: many machines that see the target, and the source, under the same paths.

Ray starts a lost task again on another node; a task done twice writes the same bytes in the same place. The journal is
the driver's alone.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from itertools import count
from typing import TYPE_CHECKING, Any

from dsctl.consume import files_read
from dsctl.errors import DsctlError, PlanError, WorkError
from dsctl.stores import HubRepository, LocalFolder, Store

if TYPE_CHECKING:
    from dsctl.plan import Job
    from dsctl.tasks import Context, Progress, Receipt, Seal

# How often a task is started again whose worker or node has died.
RETRIES = 5
# Tasks that share a GPU: while one computes, others read and write.
SHARERS = 4
# Seconds after which waiting for a task looks whether somebody wants the run to end.
GLANCE = 1.0
# Seconds for a cluster's head to answer.
REACH = 10.0


class Ray:
    """Tasks for each processor of a cluster; those whose files only some nodes hold go to one of these."""

    def __init__(self, context: Context, workers: int = 0, address: str = "", memory: int = 0) -> None:
        """`workers` are the tasks under way at once, 0 for what the cluster has; `memory` is what each takes, bytes."""
        self._ray = _joined(address, workers)
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        processors = int(self._ray.cluster_resources().get("CPU", 1))
        # Each node has its next task waiting.
        self.capacity = workers or processors + len(nodes)
        self._options: dict[str, Any] = {"num_cpus": 1, "max_retries": RETRIES, "memory": memory or None}
        if context.devices != ("cpu",):
            # Ray shows a task the device that it gave it as the first and only one.
            self._options["num_gpus"] = 1 / SHARERS
            context = replace(context, devices=("cuda:0",))
        self._perform = self._ray.remote(_perform)
        self._context = self._ray.put(context)
        self._turns = count()
        self._tasks: dict[Any, Job | Seal] = {}
        self._holders = self._find_holders(context.store, [node["NodeID"] for node in nodes])

    def _find_holders(self, store: Store, nodes: list[str]) -> dict[str, frozenset[str]]:
        """The nodes that hold a file of the source on their own, for each file that only some of them hold."""
        if len(nodes) < 2:
            return {}
        files = list(store.files())
        look = self._ray.remote(holds)
        looks = [look.options(num_cpus=0, **self._at(node, soft=False)).remote(store, files) for node in nodes]
        held = dict(zip(nodes, self._ray.get(looks), strict=True))
        found = {file: frozenset(node for node in nodes if file in held[node]) for file in files}
        return {file: holders for file, holders in found.items() if 0 < len(holders) < len(nodes)}

    def _at(self, node: str, soft: bool = True) -> dict[str, Any]:
        strategies = import_module("ray.util.scheduling_strategies")
        return {"scheduling_strategy": strategies.NodeAffinitySchedulingStrategy(node, soft=soft)}

    def submit(self, task: Job | Seal) -> None:
        options = self._options | self._near(task)
        self._tasks[self._perform.options(**options).remote(task, self._context)] = task

    def _near(self, task: Job | Seal) -> dict[str, Any]:
        """Where a job had best be done, if that matters."""
        files = [self._holders[file] for file in sorted(_read(task)) if file in self._holders]
        if not files:
            return {}
        holders = sorted(frozenset.intersection(*files) or files[0])
        return self._at(holders[next(self._turns) % len(holders)])

    def next(self, progress: Progress) -> Receipt:
        while not (done := self._ray.wait(list(self._tasks), timeout=GLANCE)[0]):
            pass
        task = self._tasks.pop(done[0])
        try:
            outcome = self._ray.get(done[0])
        except self._ray.exceptions.RayError as error:
            raise _explained(error) from None
        if isinstance(outcome, DsctlError):
            raise outcome
        progress(sum(step.read_bytes for step in getattr(task, "steps", ())))
        return outcome  # type: ignore[no-any-return]

    def close(self) -> None:
        for reference in self._tasks:
            self._ray.cancel(reference, force=True)
        self._tasks.clear()
        self._ray.shutdown()


def _joined(address: str, workers: int) -> Any:
    """The library, connected to the cluster at an address, or to one of this machine alone.

    Raises:
        PlanError: it is not installed. WorkError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise PlanError("--engine ray: Ray is not installed", hint="pip install 'dsctl[ray]', on every node") from None
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    here = {} if address or os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or None, "include_dashboard": False}
    try:
        _refuse_silent(address)
        ray.init(address=address or None, **quiet, **here)
    except (OSError, RuntimeError, ValueError) as error:
        hint = "start one with `ray start --head`, and join it from other machines with `ray start --address=...`"
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise WorkError(f"no Ray cluster at {where}: {_line(error)}", hint=hint) from None
    return ray


def _refuse_silent(address: str) -> None:
    """Find out in seconds that nobody listens at HOST:PORT; Ray itself tries for minutes.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), REACH).close()


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _explained(error: Exception) -> WorkError:
    """What became of a task that Ray gave up."""
    name = type(error).__name__
    if "OutOfMemory" in name:
        hint = "a smaller --max-memory makes each task smaller; the same command resumes"
        return WorkError("a Ray worker ran out of memory", hint=hint)
    if name in ("WorkerCrashedError", "NodeDiedError", "OwnerDiedError", "RayActorError"):
        return WorkError(f"a task's worker died {RETRIES + 1} times ({name})", hint="the same command resumes")
    return WorkError(f"a Ray task failed: {_line(error)}", hint="the same command resumes")


def _read(task: Job | Seal) -> Iterable[str]:
    """The source files that a task reads."""
    from dsctl.tasks import Seal

    return () if isinstance(task, Seal) else files_read(task)


def holds(store: Store, files: Iterable[str]) -> set[str]:
    """Which files of a store this machine has on a disk that it sees."""
    if isinstance(store, HubRepository):
        return {file for file in files if store.cached(file)}
    if isinstance(store, LocalFolder):
        return {file for file in files if os.path.isfile(os.path.join(store.root, file))}
    return set(files)


def _perform(task: Job | Seal, context: Context) -> Receipt | DsctlError:
    """One task, on whatever node this is; what went wrong on purpose comes back as a value and is not tried again."""
    import torch

    from dsctl.work import perform

    torch.set_num_threads(1)
    if not os.path.isdir(context.folder):
        hint = "every node must see source and target under the same path: a shared file system"
        return WorkError(f"{context.folder}: is no folder on node {socket.gethostname()}", hint=hint)
    try:
        return perform(task, context, lambda nbytes: None)
    except DsctlError as error:
        return error
    except MemoryError:
        return WorkError("out of memory", hint="a smaller --max-memory")
