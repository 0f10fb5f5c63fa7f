"""Memory for an n-gram table of V4.1-Flash at its real size: 98.3 GB of codes and 3.1 GB of scales, all holes.

    python benchmarks/table.py [--folder FOLDER] [--workers N]

Runs each command in processes of its own, and gives back what has been written while it runs, so the folder needs only
some free gigabytes. Prints the peak of resident memory of any one process, as the system counts it (VmHWM).
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.full_size import hollow

TABLE = "layers.1.engram.embed.weight"
# Commands that read or write the whole table.
COMMANDS = {
    "move": ("convert", "--layout", "published", "--only", TABLE, "--allow-missing"),
    "to BF16": ("convert", "--bf16", "--only", TABLE, "--allow-missing"),
    "shard": ("shard", "--layout", "deepseek", "--tp", "8", "--only", TABLE, "--allow-missing"),
}
# The disk seems to have room for all of it: what is written is given back at once.
STARTER = """
import shutil, sys
from dsctl.__main__ import main
room = shutil.disk_usage("/")._replace(free=1 << 50)
shutil.disk_usage = lambda path: room
sys.argv[0] = "dsctl"
main()
"""
_PUNCH = 0x01 | 0x02
_LIBC = ctypes.CDLL(None, use_errno=True)


def give_back(folder: Path) -> None:
    """Turn what has been written to large files into holes, except their first megabyte."""
    for path in folder.rglob("*.part"):
        try:
            size = path.stat().st_size
            descriptor = os.open(path, os.O_WRONLY)
        except OSError:
            continue
        try:
            _LIBC.fallocate(descriptor, _PUNCH, ctypes.c_long(1 << 20), ctypes.c_long(max(0, size - (1 << 20))))
        finally:
            os.close(descriptor)


def processes(parent: int) -> Iterator[int]:
    """A process and all processes below it."""
    yield parent
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    except OSError:
        return
    for child in children:
        yield from processes(int(child))


def peak(process: int) -> int:
    """The largest resident memory that a process has had so far, in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


def measured(command: list[str], target: Path) -> tuple[int, float, int]:
    """The largest peak of one process in bytes, the seconds, and the exit status."""
    began, peaks = time.perf_counter(), {}
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while running.poll() is None:
        for process in processes(running.pid):
            peaks[process] = max(peaks.get(process, 0), peak(process))
        give_back(target)
        time.sleep(0.05)
    return max(peaks.values()), time.perf_counter() - began, running.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dsctl-table-", dir=chosen.folder) as made:
        source = hollow(Path(made) / "v4.1", "v4.1-flash")
        begin = [sys.executable, "-c", STARTER]
        print(f"{'command':<10} {'workers':>7} {'peak MB':>8} {'seconds':>8} {'status':>6}")
        for name, (verb, *words) in COMMANDS.items():
            target = Path(made) / "out"
            more = ["--workers", str(chosen.workers), "--quiet"]
            found = measured([*begin, verb, str(source), str(target), *words, *more], target)
            print(f"{name:<10} {chosen.workers:>7} {found[0] / 1e6:>8.0f} {found[1]:>8.1f} {found[2]:>6}", flush=True)
            shutil.rmtree(target, ignore_errors=True)


if __name__ == "__main__":
    main()
