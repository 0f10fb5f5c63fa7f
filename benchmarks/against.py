"""The time and memory of `verify --against`, beside `compare` and a plain read of the same bytes, in one run.

    python benchmarks/against.py [--size 2GB] [--folder FOLDER] [--runs 3]

Prints medians of wall seconds, the rate in bytes of both sides, and the highest resident memory (VmHWM) of the process.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

READ = """
import sys
from pathlib import Path
buffer = bytearray(8 << 20)
for folder in sys.argv[1:]:
    for path in sorted(Path(folder).glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
"""


def measured(command: list[str]) -> tuple[float, int]:
    """Wall seconds, and the peak of resident memory in bytes."""
    began = time.perf_counter()
    watched = f"import resource, subprocess, sys; r = subprocess.run({command!r}, stdout=subprocess.DEVNULL); \
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(r.returncode)"
    done = subprocess.run([sys.executable, "-c", watched], check=True, capture_output=True, text=True)
    return time.perf_counter() - began, int(done.stdout) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="2GB")
    parser.add_argument("--folder", default=None)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    dsctl = [sys.executable, "-m", "dsctl"]
    try:
        fp8, bf16, again = (folder / name for name in ("fp8", "bf16", "again"))
        subprocess.run([*dsctl, "tiny", "v3.2", fp8, "--size", given.size, "-q"], check=True)
        subprocess.run([*dsctl, "convert", fp8, bf16, "--bf16", "--no-keep-scales", "-q"], check=True)
        subprocess.run([*dsctl, "convert", bf16, again, "--to", "fp8-channel", "-q"], check=True)
        sides = {"the same": (fp8, fp8), "BF16 of FP8": (bf16, fp8), "FP8 by channel of BF16": (again, bf16)}
        for name, (one, source) in sides.items():
            nbytes = sum(path.stat().st_size for side in (one, source) for path in side.glob("*.safetensors"))
            commands = {
                "read": [sys.executable, "-c", READ, str(one), str(source)],
                "compare": [*dsctl, "compare", str(one), str(source), "-q"],
                "against": [*dsctl, "verify", str(one), "--against", str(source), "-q"],
                "sample 1%": [*dsctl, "verify", str(one), "--against", str(source), "--sample", "1%", "-q"],
            }
            runs: dict[str, list[tuple[float, int]]] = {what: [] for what in commands}
            for _ in range(given.runs):
                for what, command in commands.items():
                    runs[what].append(measured(command))
            for what, found in runs.items():
                seconds, memory = median(one for one, _ in found), max(memory for _, memory in found)
                rate = f"{nbytes / seconds / 1e6:,.0f} MB/s of {nbytes / 1e9:.2f} GB"
                print(f"{name:24} {what:10} {seconds:7.2f} s  {rate}  {memory / 1e6:,.0f} MB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
