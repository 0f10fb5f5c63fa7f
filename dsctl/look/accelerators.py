"""Accelerators by name: how much memory one has. Data only, from vendors' datasheets."""

from __future__ import annotations

from typing import NamedTuple

from dsctl.core.errors import UsageError

GB = 10**9


class Accelerator(NamedTuple):
    """One device: memory as its datasheet gives it, in decimal bytes, and memory bandwidth in bytes per second."""

    name: str
    memory: int
    bandwidth: int
    source: str


ACCELERATORS: dict[str, Accelerator] = {
    "a100": Accelerator("A100 SXM 80GB", 80 * GB, 2_039 * GB, "NVIDIA A100 80GB datasheet"),
    "h100": Accelerator("H100 SXM", 80 * GB, 3_350 * GB, "NVIDIA H100 datasheet"),
    "h200": Accelerator("H200 SXM", 141 * GB, 4_800 * GB, "NVIDIA H200 datasheet"),
    "b200": Accelerator("B200", 180 * GB, 8_000 * GB, "NVIDIA DGX B200 datasheet: 1,440 GB and 64 TB/s for 8"),
    "mi300x": Accelerator("MI300X", 192 * GB, 5_300 * GB, "AMD Instinct MI300X data sheet"),
    "mi325x": Accelerator("MI325X", 256 * GB, 6_000 * GB, "AMD Instinct MI325X data sheet"),
    "mi355x": Accelerator("MI355X", 288 * GB, 8_000 * GB, "AMD Instinct MI355X data sheet"),
}


def accelerator(text: str) -> Accelerator:
    """The accelerator of this name.

    Raises:
        UsageError: there is none.
    """
    found = ACCELERATORS.get(text.strip().lower())
    if found is None:
        raise UsageError(f"--gpu: {text!r} is unknown", hint=f"known: {', '.join(ACCELERATORS)}")
    return found
