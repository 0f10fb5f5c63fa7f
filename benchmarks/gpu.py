"""A GPU against all cores and against the published loop, in one short run: `python -m benchmarks.gpu [--size 6GB]`.

First the contract tests of devices run on the GPU. Then one FP8 checkpoint in a memory-backed folder is converted to
BF16 by each side in turn, several rounds: dsctl on the processor with all cores, dsctl on the GPU with its usual
process per GPU, dsctl with `--device auto`, and the published loop (deepseek-ai/DeepSeek-V3 inference/fp8_cast_bf16.py)
with the textbook formula on the GPU. Medians of wall and processor seconds, and ratios; the files of all dsctl's sides
are compared. `--device cpu` plays the GPU, to try the script on a machine without one.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.convert import PUBLISHED, WARM, WIDTHS, Run, folder_bytes, timed


def contracts() -> None:
    """The contract tests of devices, on the GPU."""
    words = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "tests/contracts/test_devices.py",
    ]
    print("contract tests:", subprocess.run(words, capture_output=True, text=True, check=False).stdout.splitlines()[-1])


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same weight files."""
    names = sorted(path.name for path in one.glob("*.safetensors"))
    there = sorted(path.name for path in other.glob("*.safetensors"))
    return names == there and not any(map(any, filecmp.cmpfiles(one, other, names, shallow=False)[1:]))


def main() -> None:
    """Run everything, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="6GB")
    parser.add_argument("--folder", default="/dev/shm")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        contracts()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="dsctl-bench-") as name:
        work, found = Path(name), dict[str, list[Run]]()
        source, dsctl = work / "source", [sys.executable, "-m", "dsctl"]
        made = timed(
            [*dsctl, "tiny", "v3.2", str(source), "--size", arguments.size, *WIDTHS, "--shards", "16", "--quiet"]
        )
        size = folder_bytes(source)
        print(f"{size / 1e9:.2f} GB made in {made.wall:.1f} s, {os.cpu_count()} cores, torch on {arguments.device}")

        def convert(*more: str) -> list[str]:
            return [*dsctl, "convert", str(source), str(work / "out"), "--bf16", "--quiet", *more]

        sides = {
            "dsctl, processor": convert(),
            f"dsctl, {arguments.device}": convert("--device", arguments.device),
            f"dsctl, {arguments.device}, 4 workers": convert("--device", arguments.device, "--workers", "4"),
            "dsctl, auto": convert("--device", "auto"),
            "published loop": [sys.executable, "-c", PUBLISHED, str(source), str(work / "out"), arguments.device],
        }
        kept = work / "kept"
        for number in range(arguments.runs):
            for side, command in sides.items():
                shutil.rmtree(work / "out", ignore_errors=True)
                subprocess.run([sys.executable, "-c", WARM, str(2 * size)], check=True)
                found.setdefault(side, []).append(timed(command))
                if number or side == "published loop":
                    continue
                if kept.exists():
                    print(f"{side}: the same bytes as the processor's: {same(kept, work / 'out')}")
                else:
                    (work / "out").rename(kept)
        loop = median(run.wall for run in found["published loop"])
        ours = median(run.wall for run in found["dsctl, processor"])
        print(f"{'side':<28}{'wall s':>9}{'cpu s':>9}{'x the loop':>12}{'x all cores':>13}")
        for side, runs in found.items():
            wall, cpu = (median(column) for column in list(zip(*runs, strict=True))[:2])
            print(f"{side:<28}{wall:>9.2f}{cpu:>9.2f}{loop / wall:>12.2f}{ours / wall:>13.2f}")


if __name__ == "__main__":
    main()
