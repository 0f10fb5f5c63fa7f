"""Tasks on a Ray cluster: many machines that see the source and the target under the same paths.

Ray restarts a lost task on a different node; a task done twice writes the same bytes to the same place. Only the driver
writes the journal.
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

# Restarts of a task whose worker or node has died.
RETRIES = 5
# Tasks that share a GPU: while one computes, others read and write.
SHARERS = 4
# Seconds between checks for an interrupt while waiting for a task.
GLANCE = 1.0
# Seconds of waiting between checks that a node can still take a task.
LOOK = 10.0
# Seconds for a cluster's head to answer.
REACH = 10.0


class Ray:
    """Runs tasks on each processor of a cluster; a task whose files only some nodes hold runs on one of these."""

    def __init__(
        self,
        context: Context,
        workers: int = 0,
        address: str = "",
        memory: int = 0,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`workers` are the tasks that run at once, 0 for all processors; `memory` are the bytes that each takes.

        `say` is called with a line of text when it has to wait.

        Raises:
            PlanError: Ray is not installed, or no node is large enough for a task. WorkError: there is no such cluster.
        """
        self._ray = _joined(address, workers)
        self._calls = ThreadPoolExecutor(1)
        # Messages of Ray's own threads about dead workers are not data: they go to stderr.
        self._aside = redirect_stdout(sys.stderr)
        self._aside.__enter__()
        self._tasks: dict[Any, Job | Seal] = {}
        self._say, self._turns = say, count()
        gpu = context.devices != ("cpu",)
        self._options: dict[str, Any] = {"num_cpus": 1, "max_retries": RETRIES, "memory": memory or None}
        if gpu:
            # Ray shows a task only the device assigned to it, as the first one.
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
        """A call of Ray from a separate thread, because an exception of a signal handler in compiled code is lost."""
        return self._calls.submit(call, *arguments, **options).result()

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._call(self._ray.nodes) if node["Alive"]]

    def _fit(self, nodes: Iterable[dict[str, Any]]) -> bool:
        """Whether one of the nodes is large enough for a task."""
        return any(all(node["Resources"].get(name, 0) >= need for name, need in self._needs.items()) for node in nodes)

    def _refuse_unfit(self, nodes: list[dict[str, Any]]) -> None:
        """Refuse a cluster in which tasks would wait forever.

        Raises:
            PlanError: with the needs of a task, and the most that a node has.
        """
        if self._fit(nodes):
            return
        most = {name: max((node["Resources"].get(name, 0) for node in nodes), default=0) for name in self._needs}
        raise PlanError(
            f"--engine ray: no node can take a task of {_amounts(self._needs)}; the largest has {_amounts(most)}",
            hint="use larger nodes (`ray start --num-cpus, --num-gpus, --memory`), or a smaller --max-memory",
        )

    def _find_holders(self, store: Store, nodes: list[str]) -> dict[str, frozenset[str]]:
        """The nodes that hold a file of the source, for each file that only some nodes hold."""
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
        """The scheduling options that place a job near its files, if only some nodes hold them."""
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
        """Wait until one task ends, and say so if no node is left that can take one."""
        looked, fit = time.monotonic(), True
        while not (done := self._call(self._ray.wait, list(self._tasks), timeout=GLANCE)[0]):
            if time.monotonic() - looked < LOOK:
                continue
            before, fit, looked = fit, self._fit(self._nodes()), time.monotonic()
            if before and not fit:
                self._say(f"waiting: no node is left that can take a task of {_amounts(self._needs)}")
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


def _amounts(amounts: Mapping[str, float]) -> str:
    """Resources of a node or a task, in words."""
    words = f"{amounts['CPU']:g} processors and {amounts['memory']:,.0f} bytes of memory"
    return words + (f" and {amounts['GPU']:g} GPUs" if amounts["GPU"] else "")


def _joined(address: str, workers: int) -> Any:
    """The Ray library, connected to the cluster at an address, or to one on this machine only.

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
            # Ray's handler would end the process with a traceback.
            signal.signal(signal.SIGTERM, handler)
    except (OSError, RuntimeError, ValueError) as error:
        hint = "start one with `ray start --head`, and join it from other machines with `ray start --address=...`"
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise WorkError(f"no Ray cluster at {where}: {_line(error)}", hint=hint) from None
    return ray


def _refuse_silent(address: str) -> None:
    """Find out in seconds that no server listens at HOST:PORT; Ray itself tries for minutes.

    Raises:
        OSError: no server listens.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), REACH).close()


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _explained(error: Exception) -> WorkError:
    """The error for a task that Ray gave up."""
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
    """The files of a store that this machine can read from a disk."""
    if isinstance(store, HubRepository):
        return {file for file in files if store.cached(file)}
    if isinstance(store, LocalFolder):
        return {file for file in files if os.path.isfile(os.path.join(store.root, file))}
    return set(files)


def _perform(task: Job | Seal, context: Context) -> Receipt | DsctlError:
    """One task on this node; a `DsctlError` is returned as a value, so that Ray does not retry it."""
    import torch

    from dsctl.work.job import perform

    torch.set_num_threads(1)
    if not os.path.isdir(context.folder):
        hint = "every node must see source and target under the same path: a shared file system"
        return WorkError(f"{context.folder}: is not a folder on node {socket.gethostname()}", hint=hint)
    try:
        return perform(task, context, lambda nbytes: None)
    except DsctlError as error:
        return error
