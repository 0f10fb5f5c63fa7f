"""The tasks of a Ray cluster: many machines that see the target, and the source, under the same paths.

Ray starts a lost task again on another node; a task done twice writes the same bytes in the same place. The journal is
the driver's alone.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from importlib import import_module
from itertools import count
from typing import Any

from dsctl.core.errors import DsctlError, PlanError, WorkError
from dsctl.core.extras import install_command
from dsctl.core.progress import Advance
from dsctl.plan.plan import Job, files_read
from dsctl.stores import Store
from dsctl.stores.hub import HubRepository
from dsctl.stores.local import LocalFolder
from dsctl.work.tasks import Context, Receipt, Seal

# How often a task is started again whose worker or node has died.
RETRIES = 5
# Tasks that share a GPU: while one computes, others read and write.
SHARERS = 4
# Seconds after which waiting for a task looks whether somebody wants the run to end.
GLANCE = 1.0
# Seconds of waiting after which it looks whether there still is a node that can take a task.
LOOK = 10.0
# Seconds for a cluster's head to answer.
REACH = 10.0


class Ray:
    """Tasks for each processor of a cluster; those whose files only some nodes hold go to one of these."""

    def __init__(
        self,
        context: Context,
        workers: int = 0,
        address: str = "",
        memory: int = 0,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`workers` are the tasks under way at once, 0 for what the cluster has; `memory` is what each takes, bytes.

        `say` is told what it waits for.

        Raises:
            PlanError: Ray is not installed, or no node has what a task takes. WorkError: there is no such cluster.
        """
        self._ray = _joined(address, workers)
        self._calls = ThreadPoolExecutor(1)
        # What Ray's own threads have to say of dead workers is no data.
        self._aside = redirect_stdout(sys.stderr)
        self._aside.__enter__()
        self._tasks: dict[Any, Job | Seal] = {}
        self._say, self._turns = say, count()
        gpu = context.devices != ("cpu",)
        self._options: dict[str, Any] = {"num_cpus": 1, "max_retries": RETRIES, "memory": memory or None}
        if gpu:
            # Ray shows a task the device that it gave it as the first and only one.
            self._options["num_gpus"] = 1 / SHARERS
            context = replace(context, devices=("cuda:0",))
        self._needs = {"CPU": 1.0, "memory": float(memory), "GPU": 1 / SHARERS if gpu else 0.0}
        try:
            nodes = self._nodes()
            self._refuse_unfit(nodes)
            processors = int(self._ray.cluster_resources().get("CPU", 1))
            # Each node has its next task waiting.
            self.capacity = workers or processors + len(nodes)
            self._perform = self._ray.remote(_perform)
            self._context = self._call(self._ray.put, context)
            self._holders = self._find_holders(context.store, [node["NodeID"] for node in nodes])
        except BaseException:
            self.close()
            raise

    def _call(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """A call of Ray's from a thread of its own: what a signal's handler raises within compiled code is lost."""
        return self._calls.submit(call, *arguments, **options).result()

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._call(self._ray.nodes) if node["Alive"]]

    def _fit(self, nodes: Iterable[dict[str, Any]]) -> bool:
        """Whether one of the nodes has what a task takes."""
        return any(all(node["Resources"].get(name, 0) >= need for name, need in self._needs.items()) for node in nodes)

    def _refuse_unfit(self, nodes: list[dict[str, Any]]) -> None:
        """Refuse a cluster in which tasks would wait for ever.

        Raises:
            PlanError: with what a task takes, and the most that a node has of it.
        """
        if self._fit(nodes):
            return
        most = {name: max((node["Resources"].get(name, 0) for node in nodes), default=0) for name in self._needs}
        raise PlanError(
            f"--engine ray: no node can take a task of {_told(self._needs)}; the most that one has: {_told(most)}",
            hint="nodes with more of it (`ray start --num-cpus, --num-gpus, --memory`), or a smaller --max-memory",
        )

    def _find_holders(self, store: Store, nodes: list[str]) -> dict[str, frozenset[str]]:
        """The nodes that hold a file of the source on their own, for each file that only some of them hold."""
        if len(nodes) < 2:
            return {}
        files = list(store.files())
        look = self._ray.remote(holds)
        looks = [look.options(num_cpus=0, **self._at(node, soft=False)).remote(store, files) for node in nodes]
        held = dict(zip(nodes, self._call(self._ray.get, looks), strict=True))
        found = {file: frozenset(node for node in nodes if file in held[node]) for file in files}
        return {file: holders for file, holders in found.items() if 0 < len(holders) < len(nodes)}

    def _at(self, node: str, soft: bool = True) -> dict[str, Any]:
        strategies = import_module("ray.util.scheduling_strategies")
        return {"scheduling_strategy": strategies.NodeAffinitySchedulingStrategy(node, soft=soft)}

    def submit(self, task: Job | Seal) -> None:
        options = self._options | self._near(task)
        self._tasks[self._call(self._perform.options(**options).remote, task, self._context)] = task

    def _near(self, task: Job | Seal) -> dict[str, Any]:
        """Where a job had best be done, if that matters."""
        files = [self._holders[file] for file in sorted(_read(task)) if file in self._holders]
        if not files:
            return {}
        holders = sorted(frozenset.intersection(*files) or files[0])
        return self._at(holders[next(self._turns) % len(holders)])

    def next(self, progress: Advance) -> Receipt:
        done = self._done()
        task = self._tasks.pop(done)
        try:
            outcome = self._call(self._ray.get, done)
        except self._ray.exceptions.RayError as error:
            raise _explained(error) from None
        if isinstance(outcome, DsctlError):
            raise outcome
        progress(sum(step.read_bytes for step in getattr(task, "steps", ())))
        return outcome  # type: ignore[no-any-return]

    def _done(self) -> Any:
        """Wait for one task to end, and say so where nobody is left who could do one."""
        looked, fit = time.monotonic(), True
        while not (done := self._call(self._ray.wait, list(self._tasks), timeout=GLANCE)[0]):
            if time.monotonic() - looked < LOOK:
                continue
            before, fit, looked = fit, self._fit(self._nodes()), time.monotonic()
            if before and not fit:
                self._say(f"waiting for a node that can take a task of {_told(self._needs)}: none is left")
        return done[0]

    def close(self) -> None:
        self._calls.shutdown()
        try:
            for reference in self._tasks:
                self._ray.cancel(reference, force=True)
            self._tasks.clear()
            self._ray.shutdown()
        finally:
            self._aside.__exit__(None, None, None)


def _told(amounts: Mapping[str, float]) -> str:
    """Resources of a node or a task, in words."""
    words = f"{amounts['CPU']:g} processors and {amounts['memory']:,.0f} bytes of memory"
    return words + (f" and {amounts['GPU']:g} GPUs" if amounts["GPU"] else "")


def _joined(address: str, workers: int) -> Any:
    """The library, connected to the cluster at an address, or to one of this machine alone.

    Raises:
        PlanError: it is not installed. WorkError: there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise PlanError("--engine ray: Ray is not installed", hint=f"{install_command('ray')}, on every node") from None
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    here = {} if address or os.environ.get("RAY_ADDRESS") else {"num_cpus": workers or None, "include_dashboard": False}
    try:
        _refuse_silent(address)
        ray.init(address=address or None, **quiet, **here)
        if threading.current_thread() is threading.main_thread():
            # Ray would end the process and print where it was.
            signal.signal(signal.SIGTERM, handler)
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

    from dsctl.work.job import perform

    torch.set_num_threads(1)
    if not os.path.isdir(context.folder):
        hint = "every node must see source and target under the same path: a shared file system"
        return WorkError(f"{context.folder}: is no folder on node {socket.gethostname()}", hint=hint)
    try:
        return perform(task, context, lambda nbytes: None)
    except DsctlError as error:
        return error
