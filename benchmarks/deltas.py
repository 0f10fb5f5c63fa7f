"""Deltas beside other tools: time to make and to apply them, and their size against what the changes need at least.

    python -m benchmarks.deltas [--size 2GB] [--table-size 200MB] [--folder DIR] [--runs 3] [--xdelta3 PATH]

Two checkpoints of `dsctl tiny`, BF16 with 1 % of the values changed by one unit in the last place, are compared by
`dsctl delta make`, `zstd --patch-from` and `xdelta3`, each with all processors: the latter two take file by file, as
many at once. The page cache is warm. Then each is applied, beside `cp` and a copy in Python. Medians of wall seconds,
start-up included. A second table has the sizes for other changes. The least bytes are the order-0 entropy of the XOR
of each tensor, with the bytes of equal place in their elements counted together; a better model of the values may need
fewer.

`--stand-in` tries the benchmark itself with the tests' own writer and reader instead of `dsctl delta`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from tests.support import changed
from tests.support.raw_tensors import BITS, places_of

DSCTL = [sys.executable, "-m", "dsctl"]
# zstd needs a window as large as the older file, and to be told so when it decompresses.
LONG = "--long=31"
STAND_IN = {
    "make": "from tests.support.shared_deltas import write as do; do(*paths, kind='adler32')",
    "apply": "import shutil; from tests.support.shared_deltas import apply_in_place as do; "
    "shutil.copytree(paths[0], paths[2]); do(paths[2], paths[1])",
}
COPY = """
import sys
from pathlib import Path
buffer = memoryview(bytearray(8 << 20))
for path in Path(sys.argv[1]).iterdir():
    with path.open("rb", buffering=0) as source, open(Path(sys.argv[2], path.name), "wb", buffering=0) as target:
        while count := source.readinto(buffer):
            target.write(buffer[:count])
"""
# The tools, and those whose sizes are told for every change.
DELTA, FAST, ZSTD, XDELTA = "dsctl delta", "zstd -1 --patch", "zstd -3 --patch", "xdelta3"
SIZED = (DELTA, ZSTD, XDELTA)

Command = list[str]


class Tools:
    """The command lines of one pair of checkpoints; every tool writes into a folder that it finds empty."""

    def __init__(self, old: Path, new: Path, xdelta3: str | None, stand_in: bool) -> None:
        self.old, self.new, self.xdelta3, self.stand_in = old, new, xdelta3, stand_in

    def dsctl(self, verb: str, *paths: Path) -> Command:
        words = [str(path) for path in paths]
        if not self.stand_in:
            return [*DSCTL, "delta", verb, *words, "--json", "-q"]
        code = f"import sys; from pathlib import Path; paths = [Path(word) for word in sys.argv[1:]]; {STAND_IN[verb]}"
        return [sys.executable, "-c", code, *words]

    def each(self, folder: Path, target: Path, line: str) -> Command:
        """A shell line for every file of a folder, as many at once as there are processors: $0 is a file's name."""
        names = "\n".join(sorted(path.name for path in folder.glob("*.safetensors*") if path.stat().st_size > 1 << 16))
        once = f"printf '%s\\n' {shlex.quote(names)} | xargs -P {os.cpu_count()} -I NAME sh -c {shlex.quote(line)} NAME"
        return ["bash", "-euc", f"mkdir -p {shlex.quote(str(target))}; {once}"]

    def makers(self) -> dict[str, Callable[[Path], Command]]:
        old, new = shlex.quote(str(self.old)), shlex.quote(str(self.new))

        def zstd(level: int) -> Callable[[Path], Command]:
            line = f'zstd -q -f -{level} {LONG} --patch-from={old}/"$0" {new}/"$0" -o {{}}/"$0".zst'
            return lambda target: self.each(self.new, target, line.format(shlex.quote(str(target))))

        found: dict[str, Callable[[Path], Command]] = {
            DELTA: lambda target: self.dsctl("make", self.old, self.new, target),
            FAST: zstd(1),
            ZSTD: zstd(3),
        }
        if self.xdelta3:
            line = f'{shlex.quote(self.xdelta3)} -q -e -f -s {old}/"$0" {new}/"$0" {{}}/"$0".vcdiff'
            found[XDELTA] = lambda target: self.each(self.new, target, line.format(shlex.quote(str(target))))
        return found

    def appliers(self, deltas: dict[str, Path]) -> dict[str, Callable[[Path], Command]]:
        old = shlex.quote(str(self.old))

        def patched(name: str, line: str) -> Callable[[Path], Command]:
            made = shlex.quote(str(deltas[name]))
            return lambda target: self.each(self.new, target, line.format(made, shlex.quote(str(target))))

        found: dict[str, Callable[[Path], Command]] = {
            "cp": lambda target: ["cp", "-r", "--reflink=never", str(self.old), str(target)],
            "copy in Python": lambda target: ["bash", "-euc", 'mkdir "$4"; "$1" -c "$2" "$3" "$4"', "copy",
                                              sys.executable, COPY, str(self.old), str(target)],
            DELTA: lambda target: self.dsctl("apply", self.old, deltas[DELTA], target),
            FAST: patched(
                FAST,
                f'zstd -q -d -f {LONG} --patch-from={old}/"$0" {{}}/"$0".zst -o {{}}/"$0"',
            ),
        }  # fmt: skip
        if self.xdelta3:
            line = f'{shlex.quote(self.xdelta3)} -q -d -f -s {old}/"$0" {{}}/"$0".vcdiff {{}}/"$0"'
            found[XDELTA] = patched(XDELTA, line)
        return found


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read(folder: Path) -> int:
    """Bring a folder into the page cache, and return its size."""
    buffer = bytearray(8 << 20)
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
    return size_of(folder)


def timed(command: Command) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(reason(done.stdout + done.stderr) or shlex.join(command))
    return seconds


def reason(text: str) -> str:
    """What a command that failed says: its last line, or the message of dsctl's JSON."""
    last = text.strip().rpartition("\n")[2]
    return str(json.loads(last)["error"]["message"]) if last.startswith("{") else last


def entropy(old: Path, new: Path) -> tuple[float, float]:
    """The share of elements that differ, and the order-0 entropy of the differences in bytes."""
    before, elements, other, least = places_of(old), 0, 0, 0.0
    for name, place in places_of(new).items():
        if not place.nbytes:
            continue
        width = max(BITS[place.dtype], 8) // 8
        difference = (before[name].read() ^ place.read()).reshape(-1, width)
        elements, other = elements + len(difference), other + int(difference.any(1).sum())
        for plane in difference.T:
            counts = np.bincount(plane, minlength=256)
            share = counts[counts > 0] / plane.size
            least -= float((share * np.log2(share)).sum()) * plane.size / 8
    return other / elements, least


def tiny(folder: Path, size: str, *options: str) -> Path:
    subprocess.run([*DSCTL, "tiny", "v3.2", str(folder), "--size", size, "-q", *options], check=True)
    return folder


def equal(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in other.glob("*.safetensors"))
    return all(subprocess.run(["cmp", "-s", one / name, other / name], check=False).returncode == 0 for name in names)


def times(tools: Tools, folder: Path, runs: int) -> None:
    """Make and apply by every tool in turn, so that whatever else the machine does hits all of them."""
    both = read(tools.old) + read(tools.new)
    size = both // 2
    makers = tools.makers()
    spent: dict[str, list[float]] = {name: [] for name in makers}
    deltas = {name: folder / f"delta-{number}" for number, name in enumerate(makers)}
    for _ in range(runs):
        for name, command in makers.items():
            shutil.rmtree(deltas[name], ignore_errors=True)
            spent[name].append(timed(command(deltas[name])))
    _, least = entropy(tools.old, tools.new)
    print(f"\nMake: {size / 1e9:.2f} GB on each side, at least {least / 1e6:.2f} MB of differences")
    for name, seconds in spent.items():
        found = size_of(deltas[name])
        rate = f"{both / median(seconds) / 1e6:,.0f} MB/s of both"
        print(f"{name:22} {median(seconds):8.2f} s  {rate:24} {found / 1e6:9.2f} MB  {100 * found / size:6.2f} %")
    appliers = tools.appliers(deltas)
    spent = {name: [] for name in appliers}
    for _ in range(runs):
        for number, (name, command) in enumerate(appliers.items()):
            target = folder / f"made-{number}"
            spent[name].append(timed(command(target)))
            if not name.startswith(("cp", "copy")) and not equal(target, tools.new):
                raise RuntimeError(f"{name}: not the new checkpoint")
            shutil.rmtree(target)
    print("\nApply")
    for name, seconds in spent.items():
        part = f"{median(spent['cp']) / median(seconds):.2f} of cp's speed"
        print(f"{name:22} {median(seconds):8.2f} s  {size / median(seconds) / 1e6:,.0f} MB/s of NEW  {part}")


def sizes(pairs: dict[str, tuple[Path, Path]], folder: Path, xdelta3: str | None, stand_in: bool) -> None:
    """What every change costs each tool. A delta that dsctl does not make is told in its words."""
    print(f"\n{'Sizes':24} {'elements':>9} {'NEW':>9}", *map("{:>16}".format, ("at least", *SIZED)))
    for what, (old, new) in pairs.items():
        tools, size = Tools(old, new, xdelta3, stand_in), size_of(new)
        share, least = entropy(old, new)
        cells, said = [least], ""
        for name in SIZED:
            target = folder / "tried"
            try:
                if name in tools.makers():
                    timed(tools.makers()[name](target))
                cells.append(float(size_of(target)))
            except RuntimeError as error:
                cells.append(0.0)
                said = f"\n  {error}"
            shutil.rmtree(target, ignore_errors=True)
        shown = " ".join(f"{at / 1e6:7.2f} {100 * at / size:6.2f} %" if at else f"{'-':>16}" for at in cells)
        print(f"{what:24} {100 * share:7.2f} % {size / 1e6:9.2f} {shown}{said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="2GB")
    parser.add_argument("--table-size", default="200MB")
    parser.add_argument("--folder", default=None)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--xdelta3", default=shutil.which("xdelta3"))
    parser.add_argument("--stand-in", action="store_true")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.folder))
    try:
        zstd = subprocess.run(["zstd", "--version"], capture_output=True, text=True, check=True).stdout.strip()
        print(f"{os.cpu_count()} processors; {zstd}; xdelta3: {given.xdelta3 or 'not here'}")
        old = tiny(folder / "old", given.size, "--bf16")
        new = changed.make(old, folder / "new", changed.last_bits(0.01))
        times(Tools(old, new, given.xdelta3, given.stand_in), folder, given.runs)
        for place in list(folder.iterdir()):
            shutil.rmtree(place)
        old, fp8 = tiny(folder / "bf16", given.table_size, "--bf16"), tiny(folder / "fp8", given.table_size)
        pairs = {
            "1 % by one unit, BF16": (old, changed.make(old, folder / "unit", changed.last_bits(0.01))),
            "optimiser step, BF16": (old, changed.make(old, folder / "step", changed.optimiser_step())),
            "fine-tune, BF16": (old, changed.make(old, folder / "tuned", changed.fine_tune())),
            "quantized again, FP8": (fp8, changed.quantized_again(fp8, folder / "again")),
            "1 % of FP8 codes": (fp8, changed.make(fp8, folder / "codes", changed.last_bits(0.01))),
            "two seeds, BF16": (old, tiny(folder / "other", given.table_size, "--bf16", "--seed", "1")),
        }
        sizes(pairs, folder, given.xdelta3, given.stand_in)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
