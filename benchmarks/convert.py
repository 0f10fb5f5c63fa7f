"""Whole conversions against what else there is, both sides in one run: medians of several, and the ratios.

    python benchmarks/convert.py [--size 2GB] [--folder DIR ...] [--runs 3] [--before CHECKOUT]

Sides, each a process of its own: dsctl; the published loop (deepseek-ai/DeepSeek-V3 inference/fp8_cast_bf16.py) with
the textbook formula in place of its GPU kernel; compressed-tensors' convert_checkpoint with its FP8 block
dequantizer; the floor, which reads the source once and writes as many bytes as the output has, synced; and with
`--before` dsctl as it is in a checkout of an earlier commit, with one worker. Wall and
processor seconds are the system's own account of the finished process and its children; memory is that of the
largest process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

PUBLISHED = """
import json, os, sys
import torch
from safetensors.torch import load_file, save_file
torch.set_num_threads(2)
source, target, device = sys.argv[1:]
os.makedirs(target)
weight_map = json.load(open(f"{source}/model.safetensors.index.json"))["weight_map"]
loaded = {}
def tensor(name):
    file = weight_map[name]
    if file not in loaded:
        loaded[file] = load_file(f"{source}/{file}", device=device)
    return loaded[file][name]
def textbook(codes, scale):
    rows, columns = codes.shape
    full = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return (codes.float() * full).to(torch.bfloat16)
for file in sorted(set(weight_map.values())):
    current = loaded[file] = load_file(f"{source}/{file}", device=device)
    out = {}
    for name, weight in current.items():
        if name.endswith("_scale_inv"):
            continue
        fp8 = weight.element_size() == 1
        out[name] = textbook(weight, tensor(name + "_scale_inv")) if fp8 else weight
    save_file(out, f"{target}/{file}", metadata={"format": "pt"})
    while len(loaded) > 2:
        del loaded[next(iter(loaded))]
        if device != "cpu":
            torch.cuda.empty_cache()
os.sync()
"""
PEER = """
import os, sys
from compressed_tensors.entrypoints.convert import FP8BlockDequantizer, convert_checkpoint
source, target = sys.argv[1:]
convert_checkpoint(source, target, FP8BlockDequantizer.from_pretrained(source), max_workers=2, device="cpu")
os.sync()
"""
FLOOR = """
import os, sys
source, target, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.makedirs(target)
buffer = memoryview(bytearray(8 << 20))
for name in sorted(os.listdir(source)):
    with open(f"{source}/{name}", "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
left = size
with open(f"{target}/out", "wb", buffering=0) as file:
    while left:
        left -= file.write(buffer[:min(left, len(buffer))])
    os.fsync(file.fileno())
"""


# A virtual machine gives freed memory back to its host within seconds, and getting it again takes longer than using it:
# each side starts when as much memory as it will fill has just been in use.
WARM = """
import mmap, sys
mmap.mmap(-1, int(sys.argv[1]) + (3 << 30), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
"""
# Starts a command, adopts whatever processes it leaves, waits for all of them and tells what they used together.
ACCOUNT = """
import ctypes, os, resource, subprocess, sys, time
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
began = time.perf_counter()
code = subprocess.run(sys.argv[2:]).returncode
wall = time.perf_counter() - began
try:
    while True:
        os.wait()
except ChildProcessError:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
with open(sys.argv[1], "w") as file:
    file.write(f"{wall} {used.ru_utime + used.ru_stime} {used.ru_maxrss * 1024}")
sys.exit(code)
"""


class Run(NamedTuple):
    """One finished process: wall and processor seconds, peak resident bytes of the largest process."""

    wall: float
    cpu: float
    memory: float


def timed(command: list[str]) -> Run:
    """Run a command to its end; a failure shows what it printed."""
    with tempfile.NamedTemporaryFile("r") as account:
        wrapped = [sys.executable, "-c", ACCOUNT, account.name, *command]
        done = subprocess.run(wrapped, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command[:4])}: exit {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
        return Run(*map(float, account.read().split()))


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def sides(source: Path, target: Path, flag: str, size: int, before: Path | None) -> dict[str, list[str]]:
    """The commands to compare, by what they are called in the table."""
    python = sys.executable
    dsctl = [python, "-m", "dsctl", "convert", str(source), str(target), flag, "--quiet"]
    one = [*dsctl, "--workers", "1"]
    earlier = {"before, 1 worker": ["env", f"--chdir={before}", *one]} if before else {}
    floor = [python, "-c", FLOOR, str(source), str(target), str(size)]
    if flag == "--fp8":
        return {"dsctl": dsctl, "dsctl, 1 worker": one, **earlier, "floor": floor}
    return {
        "dsctl": dsctl,
        "dsctl, 1 worker": one,
        **earlier,
        "published loop": [python, "-c", PUBLISHED, str(source), str(target), "cpu"],
        "compressed-tensors": [python, "-c", PEER, str(source), str(target)],
        "floor": floor,
    }


def compare(
    title: str, commands: dict[str, list[str]], target: Path, size: int, runs: int, say: Callable[[str], None]
) -> None:
    """Run all sides in turn, several rounds, and print medians and ratios to the floor."""
    found: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            shutil.rmtree(target, ignore_errors=True)
            os.sync()
            subprocess.run([sys.executable, "-c", WARM, str(size)], check=True)
            found[name].append(timed(command))
    shutil.rmtree(target, ignore_errors=True)
    say(f"\n{title}\n{'side':<20}{'wall s':>9}{'cpu s':>9}{'peak MB':>9}{'wall / floor':>14}")
    floor = [run.wall for run in found["floor"]]
    for name, done in found.items():
        ratio = median(run.wall / base for run, base in zip(done, floor, strict=True))
        wall, cpu, memory = (median(column) for column in zip(*done, strict=True))
        say(f"{name:<20}{wall:>9.2f}{cpu:>9.2f}{memory / 1e6:>9.0f}{ratio:>14.2f}")
    if before := found.get("before, 1 worker"):
        pairs = zip(found["dsctl, 1 worker"], before, strict=True)
        say(f"1 worker, processor seconds now / before: {median(now.cpu / then.cpu for now, then in pairs):.2f}")


# The real widths, fewer of everything else: matrices of the real sizes.
WIDTHS = ["--hidden", "7168", "--moe-intermediate", "2048", "--heads", "16", "--vocab", "8192", "--layers", "2"]


def main() -> None:
    """Make the checkpoint, run all comparisons, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="2GB")
    parser.add_argument("--folder", action="append", help="where to work; default: memory-backed and disk-backed")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit")
    arguments = parser.parse_args()
    for place in arguments.folder or ["/dev/shm", tempfile.gettempdir()]:
        with tempfile.TemporaryDirectory(dir=place, prefix="dsctl-bench-") as name:
            work = Path(name)
            source, bf16, target = work / "source", work / "bf16", work / "target"
            make = ["dsctl", "tiny", "v3.2", str(source), "--size", arguments.size, *WIDTHS, "--quiet"]
            timed([sys.executable, "-m", *make])
            timed([sys.executable, "-m", "dsctl", "convert", str(source), str(bf16), "--bf16", "--quiet"])
            out, back = folder_bytes(bf16), folder_bytes(source)
            title = f"FP8 to BF16 in {place}: {back / 1e9:.2f} GB to {out / 1e9:.2f} GB"
            compare(title, sides(source, target, "--bf16", out, arguments.before), target, out, arguments.runs, print)
            title = f"BF16 to FP8 in {place}: {out / 1e9:.2f} GB to {back / 1e9:.2f} GB"
            compare(title, sides(bf16, target, "--fp8", back, arguments.before), target, back, arguments.runs, print)


if __name__ == "__main__":
    main()
