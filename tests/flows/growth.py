"""What a process grows by when it does one step, beside what the step says: `python -m tests.flows.growth ROWSxCOLUMNS
...` prints JSON lines, for every format and direction. Each is measured in a fork that has torch and its kernels."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from msgspec import structs

from dsctl.codecs import CODECS, in_dialect
from dsctl.codecs.codec import Codec
from dsctl.codecs.recasts import recast
from dsctl.core.boxes import Box
from dsctl.plan.plan import BAND_BYTES, Job
from dsctl.plan.steps import Part, Region, Step
from dsctl.stores.local import LocalFolder
from dsctl.work.buffers import DTYPES
from dsctl.work.job import perform
from dsctl.work.tasks import Context

# Formats that V4 stores in a way of its own.
MET = ("mxfp4", "fp8-block-e8m0")


def codecs() -> Iterator[tuple[str, Codec]]:
    """Every format but BF16, and those that can search also searching."""
    for name, codec in CODECS.items():
        if name != "bf16":
            yield name, codec
        if hasattr(codec, "search"):
            yield f"{name} --search", replace(codec, search=True)  # type: ignore[type-var]


def ways() -> Iterator[tuple[str, str, Codec, Codec]]:
    """Format, direction, and from what to what: into every format and back, and those of V4 into others."""
    plain = CODECS["bf16"]
    for name, codec in (*codecs(), *((f"{name} of V4", in_dialect(CODECS[name], "v4")) for name in MET)):
        yield name, "encode", plain, codec
        if "search" not in name:
            yield name, "decode", codec, plain
    four, eight = (in_dialect(CODECS[name], "v4") for name in MET)
    for target in (eight, CODECS["nvfp4"], CODECS["nvfp4-modelopt"]):
        yield target.name, "recast from FP4", four, target
    yield "mxfp8", "recast from FP8", eight, CODECS["mxfp8"]


def region(codec: Codec, shape: tuple[int, int], file: str) -> Region:
    """A whole matrix in a file of its own."""
    parts, offset = [], 0
    for suffix, spec in codec.specs(shape).items():
        if suffix not in codec.stated(shape):
            parts.append(Part(suffix, file, offset, spec))
            offset += spec.nbytes
    return Region(Box.whole(shape), codec, tuple(parts), shape, (0, 0))


def fill(one: Region, folder: Path, values: bool) -> None:
    """The file of a region: of values that were encoded, or empty."""
    part = one.parts[-1]
    with open(folder / one.parts[0].file, "wb") as file:
        file.truncate(part.offset + part.spec.nbytes)
        if not values:
            return
        block = (min(one.box.shape[0], 128), one.box.shape[1])
        specs = one.codec.specs(block).items()
        stored = {key: torch.empty(spec.shape, dtype=DTYPES[spec.dtype]) for key, spec in specs}
        one.codec.encode((torch.randn(block) * 0.02).bfloat16(), stored)
        for part in one.parts:
            raw, left = stored[part.name].view(-1).view(torch.uint8).numpy().tobytes(), part.spec.nbytes
            file.seek(part.offset)
            while left:
                left -= file.write(raw[:left])


def step(source: Codec, target: Codec, shape: tuple[int, int], folder: Path) -> tuple[int, Callable[[], object]]:
    """The bytes that a step says it needs, and how to do it."""
    reads, writes = region(source, shape, "in"), region(target, shape, "out.part")
    fill(reads, folder, values=True)
    fill(writes, folder, values=False)
    writes = structs.replace(writes, parts=tuple(structs.replace(part, file="out") for part in writes.parts))
    way = recast(source, target)
    one = Step("w", shape, "recast" if way else "recode", (reads,), (writes,), way=way)
    (folder / ".dsctl").mkdir(exist_ok=True)
    one = structs.replace(one, surveyed=(one,) if target.surveys else (), gathers=source.scales_follow)
    context = Context(LocalFolder(str(folder)), str(folder))
    planned = sum(one.buffers(BAND_BYTES).values())
    return planned, lambda: perform(Job(0, (one,), ("out",)), context, lambda nbytes: None)


def status(key: str) -> int:
    """A line of this process's account, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(key))


def grown(first: Callable[[], object], work: Callable[[], object]) -> int:
    """The bytes by which a fork of this process is larger at its largest when it does this, after what it does first.

    Pages of libraries that are mapped are not a fork's own until it uses them.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            first()
            Path("/proc/self/clear_refs").write_text("5")
            before = status("VmRSS")
            work()
            os.write(theirs, str(status("VmHWM") - before).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as pipe:
        told = pipe.read()
    os.waitpid(child, 0)
    return int(told)


def measured(shapes: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    """Format, direction and shape, with what was planned and what it took."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as small, tempfile.TemporaryDirectory() as large:
        for name, way, source, target in ways():
            _, first = step(source, target, (256, 256), Path(small))
            first()
            for shape in shapes:
                planned, work = step(source, target, shape, Path(large))
                took = grown(first, work)
                yield {"format": name, "way": way, "shape": shape, "planned": planned, "grown": took}


if __name__ == "__main__":
    for line in measured([(int(rows), int(columns)) for rows, columns in (word.split("x") for word in sys.argv[1:])]):
        print(json.dumps(line), flush=True)  # noqa: T201
