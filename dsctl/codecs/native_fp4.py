"""E2M1 in groups of 32 as DeepSeek V4 stores it: scales by its rule or from an earlier encoding, and signed zeros.

deepseek-ai/DeepSeek-V4-Flash inference/kernel.py (`fp4_quant_kernel`): a group's scale is 2^ceil(log2(peak * (1/6))),
the peak at least 6 * 2^-126. Decoded values do not show whether a largest value was 3 at one scale or 6
at half of it. A group that was rounded from a peak above 3 usually has odd halves: if it has none, so that every value
is also a code at the larger scale, the larger scale is used. `odd` finds the groups for which this is wrong. Torch is
imported when called.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from dsctl.codecs import nibbles
from dsctl.codecs.grids import chunks, divided, greatest
from dsctl.codecs.scales import powers

if TYPE_CHECKING:
    import torch

LEAST_PEAK = 6 * 2.0**-126
# The scale of a group of zeros: the scale of the smallest peak.
ZEROS = 1
# Marks a group without a kept scale.
NONE = 255
# Scales outside this range are always kept: their products with codes may be subnormal or infinite.
ORDINARY = (4, 250)
GROUP = 32


def exponents(peaks: torch.Tensor) -> torch.Tensor:
    """E8M0 codes (uint8) for groups with these largest magnitudes (float32), by DeepSeek's rule."""
    import torch

    scaled = peaks.clamp_min(LEAST_PEAK) * torch.tensor(1 / 6, dtype=torch.float32)
    return ((scaled.view(torch.int32) + 0x7FFFFF) >> 23).clamp_(0, 254).to(torch.uint8)


def encode(
    values: torch.Tensor, peaks: torch.Tensor, kept: torch.Tensor | None, codes: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Fill `codes` (uint8 [rows, columns / 2]) from values ([rows, columns]) with groups of these peaks (float32).

    `kept` are E8M0 codes of an earlier encoding, or `NONE`. Returns the scales (uint8) and the number of groups that
    were restored with a kept scale.
    """
    import torch

    magnitudes = values.abs().float()
    scales, restored = exponents(peaks), 0
    scales += _doubled(magnitudes.view(-1, GROUP), peaks, scales)
    if kept is not None:
        restored = _restore(magnitudes.view(-1, GROUP), kept.reshape(-1), scales.view(-1))
    quotients = torch.empty_like(magnitudes)
    divided(magnitudes, powers(scales), (1, GROUP), quotients)
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int16)
    signs = bits.clamp(-8, 0).to(torch.uint8).bitwise_and_(8)
    nibbles.pack(nibbles.e2m1(quotients).bitwise_or_(signs), codes)
    return scales, restored


def _doubled(magnitudes: torch.Tensor, peaks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Mask of the groups (bool, the shape of `scales`) whose values are all codes at twice their scale too.

    At their scale these values are 0, 1, 2, 3, 4 or 6, the largest 6: few groups of weights that were never in four
    bits have it. `magnitudes` are [groups, 32].
    """
    import torch

    factors, double = powers(scales), torch.zeros(scales.shape, dtype=torch.bool, device=scales.device)
    places = ((peaks / factors == 6) & (scales < 254)).view(-1).nonzero().view(-1)
    quotients = torch.index_select(magnitudes, 0, places) / factors.view(-1)[places, None]
    # Differences and their extremes are several times as fast as comparisons, and rounding as torch's truncation.
    beside = (quotients - quotients.round()).abs_().amax(1)
    double.view(-1)[places] = (beside == 0) & (quotients.sub_(5).abs_().amin(1) > 0)
    return double


def encode_all(
    values: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, kept: torch.Tensor | None
) -> dict[str, int]:
    """Fill codes (uint8) and scales (E8M0) of a matrix; the counts go to the audit.

    Raises:
        BadBlock: a value is NaN or infinite, or 2^127 or more.
    """
    import torch

    out, restored = scales.view(torch.uint8), 0
    for rows, places in chunks(values.shape[0], values.shape[1], (1, GROUP)):
        peaks = greatest(values[rows].abs().float(), (1, GROUP), places.start)
        known = None if kept is None else kept[places].view(torch.uint8)
        out[places], same = encode(values[rows], peaks, known, codes[rows])
        restored += same
    counts = {"groups_restored": restored, "groups_computed": out.numel() - restored}
    return {name: count for name, count in counts.items() if count}


def _restore(magnitudes: torch.Tensor, kept: torch.Tensor, scales: torch.Tensor) -> int:
    """Use kept scales for the groups that they restore exactly; return the number of these groups."""
    import torch

    places = (kept != NONE).nonzero().view(-1)
    if not len(places):
        return 0
    held, factors = magnitudes[places], powers(kept[places]).view(-1, 1)
    table = torch.tensor(nibbles.E2M1, device=held.device)
    again = table[nibbles.e2m1(held / factors).to(torch.int32)] * factors
    same = (again == held).all(1)
    scales[places[same]] = kept[places[same]]
    return int(same.sum())


def odd(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Mask of the scales (E8M0 [rows, groups]) of packed codes ([rows, columns / 2]) that `encode` would not choose."""
    import torch

    codes, scales = codes.view(torch.uint8), scales.view(torch.uint8)
    found = torch.empty(scales.shape, dtype=torch.bool)
    for rows, places in chunks(codes.shape[0], 2 * codes.shape[1], (1, GROUP)):
        found[places] = _odd(codes[rows], scales[places])
    return found


def _odd(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    import torch

    found = torch.index_select(_kinds(codes.device), 0, codes.reshape(-1).to(torch.int32)).view(*scales.shape, -1)
    top = found.bitwise_and(7).amax(2)
    halves = found.bitwise_and_(8).amax(2).to(torch.bool)
    beyond = (scales < ORDINARY[0]) | (scales > ORDINARY[1]) | (top < 5) | ((top == 7) & ~halves)
    return torch.where(top == 0, scales != ZEROS, beyond)


@lru_cache
def _kinds(device: torch.device) -> torch.Tensor:
    """By byte: the larger magnitude of its two codes, or 8 if one of them is 0.5 or 1.5."""
    import torch

    pairs = torch.arange(256, dtype=torch.int32, device=device)
    low, high = pairs & 7, (pairs >> 4) & 7
    halves = (low == 1) | (low == 3) | (high == 1) | (high == 3)
    return (torch.maximum(low, high) + 8 * halves).to(torch.uint8)
