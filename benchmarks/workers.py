"""One worker against two, where no disk is the limit: whole runs, in turn, and what remains once start-up is taken off.

    python benchmarks/workers.py [--size 4GB] [--folder /dev/shm] [--runs 5]

The start-up is that of a run on a checkpoint of a few megabytes, with as many workers. Beside it stands what the
machine gave at that time to two processes that share nothing: they only hash.
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

HASH = """
import hashlib, time
block, done, end = bytes(1 << 20), 0, time.monotonic() + 3
while time.monotonic() < end:
    hashlib.sha256(block)
    done += 1
print(done)
"""


def hashed(processes: int) -> int:
    """Megabytes that so many processes hash in three seconds, together."""
    command = [sys.executable, "-c", HASH]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    return sum(int(process.communicate()[0]) for process in running)


def main() -> None:
    """Make both checkpoints, run all four commands in turn, print the best of each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="4GB")
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    dsctl = [sys.executable, "-m", "dsctl"]
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="dsctl-bench-") as name:
        work, target = Path(name), Path(name) / "target"
        timed(
            [
                *dsctl,
                "tiny",
                "v3.2",
                str(work / "large"),
                "--size",
                arguments.size,
                "--shards",
                "32",
                *WIDTHS,
                "--quiet",
            ]
        )
        timed([*dsctl, "tiny", "v3.2", str(work / "small"), "--quiet"])
        found: dict[tuple[str, int], list[tuple[float, float]]] = {}
        control = [0.0]
        for _ in range(arguments.runs):
            control.append(hashed(2) / hashed(1))
            for source in ("small", "large"):
                for workers in (1, 2):
                    shutil.rmtree(target, ignore_errors=True)
                    warm = str(2 * folder_bytes(work / source))
                    subprocess.run([sys.executable, "-c", WARM, warm], check=True)
                    words = ["convert", str(work / source), str(target), "--bf16", "--quiet", "--workers", str(workers)]
                    run = timed([*dsctl, *words])
                    found.setdefault((source, workers), []).append((run.wall, run.cpu))
        read = folder_bytes(work / "large")
    best = {key: min(runs) for key, runs in found.items()}
    print(f"{read / 1e9:.2f} GB of FP8 to BF16 in {arguments.folder}, best of {arguments.runs}, {os.cpu_count()} cores")
    print(f"{'workers':>7}{'wall s':>9}{'cpu s':>9}{'start-up s':>12}{'GB/s read, start-up off':>26}")
    for workers in (1, 2):
        (wall, cpu), start = best["large", workers], best["small", workers][0]
        print(f"{workers:>7}{wall:>9.2f}{cpu:>9.2f}{start:>12.2f}{read / 1e9 / (wall - start):>26.2f}")
    one, two = (best["large", n][0] - best["small", n][0] for n in (1, 2))
    print(f"two processes that only hash: {max(control):.2f}x")
    print(f"two workers: {best['large', 1][0] / best['large', 2][0]:.2f}x, start-up off {one / two:.2f}x")


if __name__ == "__main__":
    main()
