"""The processes or threads that fill the files of a small checkpoint. Loads torch only where values are made."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import NamedTuple

from dsctl.core.errors import WorkError, of_the_machine
from dsctl.core.processors import cores
from dsctl.core.progress import Advance
from dsctl.tiny.draws import Task
from dsctl.work.executors.processes import prepare

# Python's lock keeps more threads than these waiting for each other.
THREADS = 8
# Below this many bytes, one process finishes before others have started.
SMALL_BYTES = 256 << 20
# The least bytes that a worker reports at a time, except for the last of a task.
REPORTED_BYTES = 1 << 23


class Filling(NamedTuple):
    """The files to fill, and what decides their values beside each parameter's own draw."""

    paths: tuple[Path, ...]
    seed: int
    deviation: float


def fill(filling: Filling, tasks: Sequence[Task], nbytes: int, workers: int, advance: Advance) -> None:
    """Carry out all tasks, `nbytes` bytes in all: in processes if that is worth their start, else in threads.

    Raises:
        OSError: the disk takes no more. WorkError: a process ended, or the machine has too little memory.
    """
    count = min(workers, len(tasks))
    if count > 1 and nbytes >= SMALL_BYTES:
        _in_processes(filling, tasks, count, advance)
    else:
        _in_threads(filling, tasks, advance)


def _in_threads(filling: Filling, tasks: Sequence[Task], advance: Advance) -> None:
    import torch

    before = torch.get_num_threads()
    # The threads below are one per core already.
    torch.set_num_threads(1)
    pool, files = ThreadPoolExecutor(min(cores(), THREADS)), _opened(filling)
    try:
        for nbytes in pool.map(lambda task: sum(_written(filling, task, files)), tasks):
            advance(nbytes)
    finally:
        pool.shutdown(cancel_futures=True)
        for file in files:
            os.close(file)
        torch.set_num_threads(before)


def _opened(filling: Filling) -> list[int]:
    return [os.open(path, os.O_WRONLY | os.O_NOFOLLOW) for path in filling.paths]


def _written(filling: Filling, task: Task, files: Sequence[int]) -> Iterator[int]:
    """Carry out a task; yields the bytes written."""
    from dsctl.tiny.values import written

    for work in task:
        yield from written(work, files, filling.seed, filling.deviation)


def _in_processes(filling: Filling, tasks: Sequence[Task], count: int, advance: Advance) -> None:
    """Each process gets its next task when its last one is done; it ends if the driver dies, at its next report."""
    server, left = prepare(), iter(tasks)
    started: dict[Connection, ForkServerProcess] = {}
    try:
        for _ in range(count):
            ours, theirs = server.Pipe()
            process = server.Process(target=_serve, args=(theirs, filling), daemon=True)
            process.start()
            theirs.close()
            started[ours] = process
            ours.send(next(left))
        busy = set(started)
        while busy:
            for pipe in wait(busy):
                assert isinstance(pipe, Connection)
                message = pipe.recv()
                if isinstance(message, Exception):
                    raise message
                if message is not None:
                    advance(message)
                elif (task := next(left, None)) is not None:
                    pipe.send(task)
                else:
                    busy.remove(pipe)
    except (EOFError, ConnectionError):
        why = "a process that makes values has ended"
        raise WorkError(why, hint="memory may have run out: free some, and run the same command again") from None
    finally:
        for process in started.values():
            process.kill()
        for pipe, process in started.items():
            process.join()
            pipe.close()


def _serve(pipe: Connection, filling: Filling) -> None:
    # Only the driver handles an interrupt, and it ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _carry_out(pipe, filling)
    except (EOFError, ConnectionError):
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  its reader has gone
    except OSError as error:
        pipe.send(error)
    except Exception as error:
        if (known := of_the_machine(error)) is None:
            raise
        pipe.send(known)


def _carry_out(pipe: Connection, filling: Filling) -> None:
    import torch

    torch.set_num_threads(1)
    files = _opened(filling)
    while True:
        unreported, task = 0, pipe.recv()
        for nbytes in _written(filling, task, files):
            unreported += nbytes
            if unreported >= REPORTED_BYTES:
                pipe.send(unreported)
                unreported = 0
        pipe.send(unreported)
        pipe.send(None)
