"""Worker processes on this machine, one torch thread each, one pipe each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from dataclasses import replace
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from dsctl.core.errors import DsctlError, WorkError, of_the_machine
from dsctl.core.progress import Advance
from dsctl.plan.plan import Job
from dsctl.work.tasks import Context, Receipt, Seal

_HINT = "memory may have run out: use fewer --workers; the same command resumes"


class Processes:
    """The requested number of processes; each gets its next task when its last one is done.

    If the driver dies, a worker finds its pipe closed at the next band and ends.
    """

    def __init__(self, context: Context, workers: int) -> None:
        self.capacity = workers
        server = prepare()
        self._workers: dict[Connection, ForkServerProcess] = {}
        self._idle: list[Connection] = []
        for number in range(workers):
            ours, theirs = server.Pipe()
            its = replace(context, devices=(context.devices[number % len(context.devices)],))
            process = server.Process(target=_serve, args=(theirs, its), daemon=True)
            try:
                process.start()
            except (OSError, EOFError) as error:
                self.close()
                raise _no_server(error) from None
            theirs.close()
            self._workers[ours] = process
            self._idle.append(ours)

    def submit(self, task: Job | Seal) -> None:
        pipe = self._idle.pop(0)
        try:
            pipe.send(task)
        except OSError:
            raise self._died(pipe) from None

    def next(self, progress: Advance) -> Receipt:
        busy = [pipe for pipe in self._workers if pipe not in self._idle]
        while True:
            for pipe in wait(busy):
                assert isinstance(pipe, Connection)
                message = self._receive(pipe)
                if isinstance(message, int):
                    progress(message)
                    continue
                self._idle.append(pipe)
                if isinstance(message, DsctlError):
                    raise message
                return message  # type: ignore[no-any-return]

    def _receive(self, pipe: Connection) -> Any:
        try:
            return pipe.recv()
        except (EOFError, ConnectionError):
            raise self._died(pipe) from None

    def _died(self, pipe: Connection) -> WorkError:
        process = self._workers[pipe]
        process.join(5)
        code = process.exitcode
        why = f"was killed by {signal.Signals(-code).name}" if code and code < 0 else f"ended with exit code {code}"
        return WorkError(f"worker process {process.pid} {why}", hint=_HINT)

    def close(self) -> None:
        for process in self._workers.values():
            process.kill()
        for pipe, process in self._workers.items():
            process.join()
            pipe.close()


def _no_server(error: Exception) -> WorkError:
    """The error if the process that starts workers has ended."""
    why = f": {error}" if str(error) else ""
    return WorkError(f"the process that starts workers has ended{why}", hint=_HINT)


def prepare() -> ForkServerContext:
    """Begin to import torch in the background, before this process needs workers.

    A process that computes nothing imports it once; each worker is a fork of that process.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["dsctl.work.executors.preload"])
    # Started separately, because it would unblock the signals that are blocked below.
    resource_tracker.ensure_running()
    # Only the driver handles an interrupt: a process that is importing would print a traceback.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return server


def _serve(pipe: Connection, context: Context) -> None:
    # Only the driver handles an interrupt, and it ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import torch

        from dsctl.work.job import perform
    except (ImportError, MemoryError, OSError, SystemError) as error:
        pipe.send(of_the_machine(error))
        return
    torch.set_num_threads(1)
    try:
        while True:
            task = pipe.recv()
            try:
                pipe.send(perform(task, context, pipe.send))
            except DsctlError as error:
                pipe.send(error)
    except (EOFError, ConnectionError):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  its reader has gone
