"""How much faster more workers are, where no disk is the limit: whole runs, in turn, with and without start-up.

    python benchmarks/workers.py [--size 4GB] [--folder /dev/shm] [--runs 5] [--workers 1 2 4]

The start-up is that of a run on a checkpoint of a few megabytes, with as many workers. More columns show what the
machine itself gives: as many processes that only digest 1 MB in their cache, that only copy memory that is in no cache,
that write to a file of their own, and that all write to one file, each against one process. A worker does two jobs at
once, so that one worker uses more than one core.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.convert import WARM, WIDTHS, folder_bytes, timed

DIGEST = """
import time
from blake3 import blake3
block, done, end = bytes(1 << 20), 0, time.monotonic() + 2
while time.monotonic() < end:
    blake3(block)
    done += 1
print(done)
"""
COPY = """
import mmap, time
source, target = (memoryview(mmap.mmap(-1, 128 << 20)) for _ in range(2))
source[:] = target[:] = bytes(128 << 20)
done, end = 0, time.monotonic() + 2
while time.monotonic() < end:
    target[:] = source
    done += 1
print(done)
"""
WRITE = """
import os, sys, time
descriptor, begin = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT), int(sys.argv[2]) * (64 << 20)
block, done, end = bytes(1 << 20), 0, time.monotonic() + 2
while time.monotonic() < end:
    os.pwrite(descriptor, block, begin + (done % 64 << 20))
    done += 1
print(done)
"""


def together(commands: list[list[str]]) -> int:
    """The rounds that Python processes with these arguments do in two seconds, together."""
    running = [subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True) for words in commands]
    return sum(int(process.communicate()[0]) for process in running)


def machine(folder: Path, processes: int) -> tuple[int, ...]:
    """The rounds of so many processes that digest, that copy, that write to their own files, and to the same one."""
    numbers = range(processes)
    own = [["-c", WRITE, str(folder / f"own-{number}"), "0"] for number in numbers]
    same = [["-c", WRITE, str(folder / "same"), str(number)] for number in numbers]
    alike = ([["-c", script]] * processes for script in (DIGEST, COPY))
    return tuple(map(together, (*alike, own, same)))


def main() -> None:
    """Make both checkpoints, run all commands in turn, print the best of each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="4GB")
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 2])
    arguments = parser.parse_args()
    counts = sorted({1, *arguments.workers})
    dsctl = [sys.executable, "-m", "dsctl"]
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="dsctl-bench-") as name:
        work, target = Path(name), Path(name) / "target"
        large = [*dsctl, "tiny", "v3.2", str(work / "large"), "--size", arguments.size, "--shards", "32", *WIDTHS]
        timed([*large, "--quiet"])
        timed([*dsctl, "tiny", "v3.2", str(work / "small"), "--quiet"])
        found: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for _ in range(arguments.runs):
            for source in ("small", "large"):
                for count in counts:
                    shutil.rmtree(target, ignore_errors=True)
                    warm = str(2 * folder_bytes(work / source))
                    subprocess.run([sys.executable, "-c", WARM, warm], check=True)
                    words = ["convert", str(work / source), str(target), "--bf16", "--quiet", "--workers", str(count)]
                    run = timed([*dsctl, *words])
                    found.setdefault((source, count), []).append((run.wall, run.cpu))
        read = folder_bytes(work / "large")
        shutil.rmtree(target)
        given = {count: machine(work, count) for count in counts}
    best = {key: min(runs) for key, runs in found.items()}
    net = {count: best["large", count][0] - best["small", count][0] for count in counts}
    print(f"{read / 1e9:.2f} GB of FP8 to BF16 in {arguments.folder}, best of {arguments.runs}, {os.cpu_count()} cores")
    titles = ("workers", 7), ("wall s", 9), ("cpu s", 9), ("start s", 9), ("GB/s read", 11), ("x one", 7)
    columns = ("digest x", 10), ("copy x", 8), ("files x", 9), ("one file x", 12)
    print("".join(f"{title:>{width}}" for title, width in (*titles, *columns)))
    for count in counts:
        (wall, cpu), start = best["large", count], best["small", count][0]
        rate = f"{read / 1e9 / net[count]:>11.2f}{net[1] / net[count]:>7.2f}"
        ratios = (many / one for many, one in zip(given[count], given[1], strict=True))
        machines = "".join(f"{ratio:>{width}.2f}" for ratio, (_, width) in zip(ratios, columns, strict=True))
        print(f"{count:>7}{wall:>9.2f}{cpu:>9.2f}{start:>9.2f}{rate}{machines}")


if __name__ == "__main__":
    main()
