"""The speed of disks, measured with several files at once as a run uses them, and the time of a plan. No torch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from tempfile import TemporaryFile

from dsctl.core.errors import SourceError
from dsctl.core.files import existing
from dsctl.core.processors import cores
from dsctl.plan.plan import Plan
from dsctl.run.identity import folder_of
from dsctl.run.resources import Resources
from dsctl.stores import Store

# Decoding or encoding, digesting and handing over to the system: output bytes per second of one core (benchmarks/,
# rounded down).
CORE_SPEED = 0.7e9
# The most bytes that are written, or read, to measure a disk, and the seconds after which no more are begun.
DISK_BYTES, LONGEST = 256 << 20, 1.5
PIECE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Speeds:
    """Measured just now, bytes per second: `read` without the system's cache, `write` synced."""

    read: float
    write: float

    def seconds(self, plan: Plan, workers: int) -> float:
        """The time for a plan, in seconds: that of the disk, or of the processors if that is longer."""
        disk = plan.bytes_in / self.read + plan.bytes_out / self.write
        return max(disk, plan.bytes_out / (CORE_SPEED * min(workers, cores())))


def probe(plan: Plan, store: Store, target: Path, resources: Resources) -> Speeds | None:
    """Measure by reading some of the source, and writing as much beside the target; None if that is not possible."""
    if store.remote:
        return None
    places = _places(plan)
    if not places:
        return None
    at_once = min(resources.workers, cores(), len(places))
    try:
        read = rate(at_once, [partial(_read, store, *one) for one in places])
        with ExitStack() as stack:
            most = sum(end - begin for _, begin, end in places)
            return Speeds(read, write_speed(existing(target), at_once, stack, most)[0])
    except (OSError, SourceError):
        return None


def _places(plan: Plan) -> list[tuple[str, int, int]]:
    """Bytes that a plan reads, spread over all of them: file, begin and end of each piece."""
    held = {(part.file, part.offset, part.spec.nbytes) for step in plan.steps for part in step.parts_read}
    largest = sorted(held, key=lambda one: -one[2])
    piece = min(PIECE_BYTES, largest[0][2] if largest else 0)
    few = sorted(largest[: DISK_BYTES // piece]) if piece else []
    return [(file, begin, begin + min(PIECE_BYTES, nbytes)) for file, begin, nbytes in few]


def _read(store: Store, file: str, begin: int, end: int) -> int:
    """Read bytes of a source file, after asking the system to drop them from its cache."""
    folder = folder_of(store, file)
    if folder is not None and hasattr(os, "posix_fadvise"):
        with open(folder.path(file), "rb", buffering=0) as opened:
            os.posix_fadvise(opened.fileno(), begin, end - begin, os.POSIX_FADV_DONTNEED)
    return len(store.read(file, begin, end))


def write_speed(folder: Path, at_once: int, stack: ExitStack, most: int = DISK_BYTES) -> tuple[float, list[FileIO]]:
    """Bytes per second written to new files in a folder and synced, and these files, which end with the stack.

    `most` bytes are written, or fewer where the disk has little room.

    Raises:
        OSError: the folder cannot be written.
    """
    status = os.statvfs(folder)
    each = min(most, status.f_bavail * status.f_frsize // 4) // at_once
    data = os.urandom(min(PIECE_BYTES, max(each, 1)))
    files = [stack.enter_context(_new(folder)) for _ in range(at_once)]
    last = time.perf_counter() + LONGEST
    return rate(at_once, [partial(_fill, file, data, each, last) for file in files]), files


def _new(folder: Path) -> FileIO:
    """A file without a name, which goes when it is closed."""
    return TemporaryFile(dir=folder, buffering=0)


def _fill(file: FileIO, data: bytes, most: int, last: float) -> int:
    written = 0
    while written < max(len(data), most) and time.perf_counter() < last:
        written += file.write(data)
    os.fsync(file.fileno())
    return written


def read_speed(files: list[FileIO]) -> float:
    """Bytes per second read from files, without the system's cache if possible."""
    for file in files:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return rate(len(files), [partial(_drain, file) for file in files])


def _drain(file: FileIO) -> int:
    file.seek(0)
    buffer, read = bytearray(PIECE_BYTES), 0
    while count := file.readinto(buffer):
        read += count
    return read


def rate(at_once: int, tasks: list[Callable[[], int]]) -> float:
    """Bytes per second of tasks that give their bytes, some at once; none is begun after `LONGEST` seconds."""
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        done = sum(pool.map(partial(_timely, began + LONGEST), tasks))
    return done / max(time.perf_counter() - began, 1e-9)


def _timely(last: float, task: Callable[[], int]) -> int:
    return task() if time.perf_counter() < last else 0
