"""This machine's equipment and speed, and the bytes that it converts in an hour, measured with the real codecs."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from statistics import median
from typing import NamedTuple

from dsctl.codecs.codec import CODES, SCALE
from dsctl.codecs.fp8_block import Fp8Block
from dsctl.core.digests import PIECE_BYTES, digest
from dsctl.core.errors import SourceError, WorkError
from dsctl.core.extras import has_torch
from dsctl.core.files import existing, refusal
from dsctl.core.processors import cores
from dsctl.run.speed import read_speed, write_speed
from dsctl.stores.hub import reach
from dsctl.stores.hub_entries import Reached

# Packages that a conversion needs, and those of the extras.
PACKAGES = ("torch", "safetensors", "huggingface_hub", "numpy", "msgspec", "typer", "rich")
EXTRAS = ("hf_xet", "ray", "s3fs")
# A matrix of these sides is measured: 8 M values, beyond any core's own cache.
SIDE = 4096, 2048
ROUNDS = 5
# Files that are written at once, to measure the disk.
WRITERS = 4


class Disk(NamedTuple):
    """A folder's disk: free bytes, and bytes per second written (synced) and read (without the cache, if possible)."""

    folder: str
    free: int
    write: float
    read: float


class Processor(NamedTuple):
    """One core's bytes per second: FP8 decoded to BF16, BF16 encoded to FP8, and digested with BLAKE3 and SHA-256.

    The codecs are not measured if torch is not installed.
    """

    decode: float | None
    encode: float | None
    blake3: float
    sha256: float


@dataclass(frozen=True, slots=True)
class Machine:
    """All measurements. `packages` maps a package that is not installed to None."""

    python: str
    system: str
    packages: dict[str, str | None]
    cores: int
    memory: int
    devices: tuple[str, ...]
    processor: Processor
    disk: Disk
    hub: Reached | None

    def per_hour(self, to_bf16: bool) -> tuple[float, str] | None:
        """Bytes of source converted in an hour, FP8 to BF16 or back, and the limit: `disk` or `processor`.

        Source and target are on the same disk, which reads or writes at one time. Every core decodes or encodes, and
        digests the output. None if the codecs were not measured.
        """
        grown = 2.0 if to_bf16 else 0.5
        codec = self.processor.decode if to_bf16 else self.processor.encode
        if codec is None:
            return None
        disk = 1 / self.disk.read + grown / self.disk.write
        processor = (1 / codec + grown / self.processor.blake3) / self.cores
        return 3600 / max(disk, processor), "disk" if disk > processor else "processor"


def examine(folder: Path, hub: bool = True) -> Machine:
    """Measure this machine and the disk of a folder, in some seconds. Nothing is left behind.

    Raises:
        SourceError: there is no such folder. WorkError: the folder cannot be written.
    """
    if not os.path.isdir(folder):
        raise SourceError(f"{folder}: no such folder", hint="name the one that a conversion would write to")
    return Machine(
        platform.python_version(),
        f"{platform.system()} {platform.machine()}",
        {name: _version(name) for name in (*PACKAGES, *EXTRAS)},
        cores(),
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        _devices() if has_torch() else (),
        _processor() if has_torch() else Processor(None, None, *_digesting(memoryview(bytes(2 * prod(SIDE))))),
        _disk(folder),
        reach() if hub else None,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> tuple[str, ...]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(torch.cuda.get_device_name(number) for number in range(count))


def _processor() -> Processor:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        codec = Fp8Block(scale_fmt="ue8m0")
        values = torch.randn(SIDE, generator=torch.Generator().manual_seed(0)).bfloat16()
        stored = {
            CODES: torch.empty(SIDE, dtype=torch.float8_e4m3fn),
            SCALE: torch.empty(codec.grid(SIDE), dtype=torch.float32),
        }
        nbytes, data = values.nbytes, values.view(torch.uint8).numpy().data
        encode = nbytes / _seconds(lambda: codec.encode(values, stored))
        decode = nbytes / 2 / _seconds(lambda: codec.decode(stored, values))
        return Processor(decode, encode, *_digesting(data))
    finally:
        torch.set_num_threads(threads)


def _digesting(data: memoryview) -> tuple[float, float]:
    """Bytes per second of BLAKE3, in pieces as a conversion digests them, and of SHA-256."""
    pieces = [data[at : at + PIECE_BYTES] for at in range(0, data.nbytes, PIECE_BYTES)]
    blake3 = _seconds(lambda: [digest(piece) for piece in pieces])
    return data.nbytes / blake3, data.nbytes / _seconds(lambda: hashlib.sha256(data).digest())


def _seconds(work: Callable[[], object]) -> float:
    """The median of several rounds, after one warm-up round."""
    found = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return median(found[1:])


def _disk(folder: Path) -> Disk:
    status = os.statvfs(existing(folder))
    try:
        with ExitStack() as stack:
            write, files = write_speed(folder, min(cores(), WRITERS), stack)
            return Disk(str(folder), status.f_bavail * status.f_frsize, write, read_speed(files))
    except OSError as error:
        raise refusal(folder, error, WorkError, "name a folder that can be written to") from None
