"""Worker processes on this machine, one pipe each. A worker does several jobs at once, on threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from dataclasses import replace
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from threading import Lock
from typing import Any

from dsctl.core.errors import DsctlError, WorkError, of_the_machine
from dsctl.core.progress import Advance
from dsctl.plan.plan import Job
from dsctl.stores.threads import threads
from dsctl.work.tasks import Context, Receipt, Seal

_HINT = "memory may have run out: use fewer --workers; the same command resumes"


class Processes:
    """The requested number of processes; each gets its next task when one of its threads is free.

    If the driver dies, a worker finds its pipe closed and ends.
    """

    def __init__(self, context: Context, workers: int) -> None:
        self.capacity = workers * context.threads
        server = prepare()
        self._workers: dict[Connection, ForkServerProcess] = {}
        self._tasks: dict[Connection, int] = {}
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
            self._tasks[ours] = 0

    def submit(self, task: Job | Seal) -> None:
        pipe = min(self._tasks, key=self._tasks.__getitem__)
        self._tasks[pipe] += 1
        try:
            pipe.send(task)
        except OSError:
            raise self._died(pipe) from None

    def next(self, progress: Advance) -> Receipt:
        busy = [pipe for pipe, tasks in self._tasks.items() if tasks]
        while True:
            for pipe in wait(busy):
                assert isinstance(pipe, Connection)
                message = self._receive(pipe)
                if isinstance(message, int):
                    progress(message)
                    continue
                self._tasks[pipe] -= 1
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
    sending = Lock()

    def send(message: int | Receipt | DsctlError) -> None:
        with sending:
            pipe.send(message)

    def work(task: Job | Seal) -> None:
        try:
            send(perform(task, context, lambda nbytes: send(nbytes) if nbytes else None))
        except DsctlError as error:
            send(error)

    def work_or_end(task: Job | Seal) -> None:
        try:
            work(task)
        except ConnectionError:
            os._exit(0)
        except BaseException:  # noqa: BLE001  a fault of dsctl ends the process, and the driver reports it
            traceback.print_exc()
            os._exit(1)

    with threads(context.threads) as pool:
        try:
            while True:
                pool.submit(partial(work_or_end, pipe.recv()))
        except (EOFError, ConnectionError):
            # The driver has gone, and no thread may write on.
            os._exit(0)
