"""Accelerators by name: the memory that one process can use, bandwidth, and the formats that the units compute. Data.

A label says less than a device has, and a tool's total says more than a process gets. `memory` is therefore the
process number: the "total capacity" in PyTorch's out-of-memory message, and the lowest one if several were seen. If no
such message was found, `memory` is estimated from the total that the vendor's tool prints: less 1.5 GiB on NVIDIA (the
largest difference seen there), less 4 GiB on devices of vendors for which no difference was seen. `source` says which.
Bandwidths are those of vendors' datasheets; nothing here was measured by dsctl.
"""

from __future__ import annotations

from typing import NamedTuple

GB, MIB, GIB = 10**9, 2**20, 2**30
CAPACITY = "total capacity in an out-of-memory message"
# The most bytes by which the total of NVIDIA's tool exceeds a process number, and those assumed for other vendors.
DRIVER, UNSEEN = 3 * GIB // 2, 4 * GIB


class Accelerator(NamedTuple):
    """One device: names, the label's GB, bytes that one process can use, bytes per second, units, and the source.

    `key` is the name for `--gpu`. `label`, `bandwidth` and the units (`fp8`, `fp4`: the device multiplies such
    numbers itself) are None if a person gave the device by its memory alone. `shared`: the memory is the host's too.
    """

    key: str
    name: str
    label: float | None
    memory: int
    bandwidth: int | None
    fp8: bool | None
    fp4: bool | None
    source: str
    shared: bool = False

    def holding(self, memory: int, source: str) -> Accelerator:
        """The same device with a memory that a person gave."""
        return self._replace(memory=memory, source=source)


def _gib(number: float) -> int:
    return round(number * GIB)


def _tb(number: float) -> int:
    return round(number * 1000) * GB


def _tool(mib: int, less: int, words: str) -> tuple[int, str]:
    """Memory and source of a device for which only the total of a tool is known."""
    return mib * MIB - less, f"estimated: {words} {mib:,} MiB, minus {less / GIB:g} GiB"


# Units: FP8 and FP4.
NEITHER, ONLY_FP8, BOTH = (False, False), (True, False), (True, True)
# fmt: off
_ROWS: tuple[tuple[str, str, float, tuple[int, str], float, tuple[bool, bool]], ...] = (
    ("a100", "A100 SXM 80GB", 80, (_gib(79.14), f"{CAPACITY}: 79.14 to 79.25 GiB"), 2.039, NEITHER),
    ("a100-40", "A100 40GB", 40, (_gib(39.39), f"{CAPACITY}: 39.39 to 39.56 GiB"), 1.555, NEITHER),
    ("a100-pcie", "A100 PCIe 80GB", 80, (_gib(79.14), f"{CAPACITY}: 79.14 to 79.25 GiB"), 1.935, NEITHER),
    ("a800", "A800", 80, (_gib(79.14), "estimated: as A100 80GB, whose nvidia-smi total it has"), 2.039, NEITHER),
    ("h20", "H20", 96, (_gib(95.0), f"{CAPACITY}: about 95.0 to 95.2 GiB"), 4.0, ONLY_FP8),
    ("h20-141", "H20 141GB", 141, (_gib(139.8), f"{CAPACITY}: 139.8 GiB"), 4.8, ONLY_FP8),
    ("h100", "H100 SXM", 80, (_gib(79.18), f"{CAPACITY}: 79.18 to 79.19 GiB"), 3.35, ONLY_FP8),
    ("h100-pcie", "H100 PCIe", 80, (_gib(79.1), f"{CAPACITY}: 79.1 GiB"), 2.0, ONLY_FP8),
    ("h100-nvl", "H100 NVL", 94, _tool(95_830, DRIVER, "nvidia-smi total"), 3.9, ONLY_FP8),
    ("h800", "H800", 80, (_gib(79.1), f"{CAPACITY}: 79.1 GiB"), 3.35, ONLY_FP8),
    ("h200", "H200 SXM", 141, (_gib(139.72), f"{CAPACITY}: 139.72 to 139.81 GiB"), 4.8, ONLY_FP8),
    ("gh200", "GH200 96GB", 96, (_gib(94.5), f"{CAPACITY}: about 94.5 GiB; memory of the GPU alone"), 4.0, ONLY_FP8),
    ("gh200-144", "GH200 144GB", 144, (153_008_209_920, f"{CAPACITY}: 153,008,209,920 bytes"), 4.9, ONLY_FP8),
    ("b200", "B200", 192, (_gib(178.35), f"{CAPACITY}: 178.35 GiB"), 7.7, BOTH),
    ("b300", "B300", 288, (_gib(267.69), f"{CAPACITY}: 267.69 GiB"), 7.75, BOTH),
    ("gb200", "GB200 GPU", 192, (_gib(184.31), f"{CAPACITY}: 184.31 GiB"), 8.0, BOTH),
    ("gb300", "GB300 GPU", 288, (_gib(276.50), f"{CAPACITY}: 276.50 GiB; a DGX Station has less"), 8.0, BOTH),
    ("rtx-pro-6000", "RTX PRO 6000", 96, (_gib(94.97), f"{CAPACITY}: 94.97 GiB"), 1.792, BOTH),
    ("l40s", "L40S", 48, (_gib(44.39), f"{CAPACITY}: 44.39 to 44.42 GiB"), 0.864, ONLY_FP8),
    ("l20", "L20", 48, (_gib(44.4), f"{CAPACITY}: about 44.4 GiB; more with ECC off"), 0.864, ONLY_FP8),
    ("rtx-5090", "RTX 5090", 32, (_gib(31.34), f"{CAPACITY}: 31.34 to 31.39 GiB"), 1.792, BOTH),
    ("gb10", "DGX Spark GB10", 128, (_gib(119.2), f"{CAPACITY}: 119.2 to 119.7 GiB; shared with the CPU"), 0.273, BOTH),
    ("mi300x", "MI300X", 192, (_gib(191.69), f"{CAPACITY}: 191.69 GiB (older ROCm: 191.98)"), 5.3, ONLY_FP8),
    ("mi308x", "MI308X", 192, (_gib(191.69), "estimated: as MI300X; not confirmed"), 5.3, ONLY_FP8),
    ("mi325x", "MI325X", 256, (_gib(255.69), f"{CAPACITY}: 255.69 GiB (older ROCm: 255.98)"), 6.0, ONLY_FP8),
    ("mi350x", "MI350X", 288, (_gib(287.98), f"{CAPACITY}: 287.98 GiB"), 8.0, BOTH),
    ("mi355x", "MI355X", 288, (_gib(287.98), f"{CAPACITY}: 287.98 GiB"), 8.0, BOTH),
    ("910b", "Ascend 910B1-B3", 64, _tool(65_536, UNSEEN, "npu-smi total"), 1.6, NEITHER),
    ("910b4", "Ascend 910B4", 32, _tool(32_768, UNSEEN, "npu-smi total"), 0.8, NEITHER),
    ("910c", "Ascend 910C die", 64, _tool(65_536, UNSEEN, "one of two dies, as 910B1:"), 1.6, NEITHER),
    ("gaudi3", "Gaudi 3", 128, _tool(131_072, UNSEEN, "hl-smi total"), 3.7, ONLY_FP8),
    ("tpu-v5p", "TPU v5p", 95, (_gib(95.74), "the limit that XLA prints: 95.74 GiB"), 2.765, NEITHER),
    ("tpu-v6e", "TPU v6e", 32, (_gib(31.25), "the limit that XLA prints: 31.25 GiB"), 1.64, NEITHER),
    ("tpu-v7", "TPU v7 core", 96, (_gib(94.75), "the limit that XLA prints: 94.75 GiB per core"), 3.7, ONLY_FP8),
)
# fmt: on
# Devices whose memory is the host's too.
SHARED = ("gb10",)
ACCELERATORS: dict[str, Accelerator] = {
    key: Accelerator(key, name, label, held[0], _tb(speed), *units, held[1], key in SHARED)
    for key, name, label, held, speed, units in _ROWS
}
# The accelerators that are shown if none is requested.
USUAL = ("a100", "h20", "h100", "h200", "b200", "b300", "mi300x", "mi355x")
