"""E2M1 in groups of 32 as DeepSeek V4 stores it: scales by its rule or from an earlier encoding, and signed zeros.

deepseek-ai/DeepSeek-V4-Flash inference/kernel.py (`fp4_quant_kernel`): a group's scale is 2^ceil(log2(peak * (1/6))),
the peak at least 6 * 2^-126. Decoded values do not show whether a largest value was 3 at one scale or 6
at half of it. A group that was rounded from a peak above 3 usually has odd halves: if it has none, so that every value
is also a code at the larger scale, the larger scale is used. `odd` finds the groups for which this is wrong. Torch is
imported when called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dsctl.codecs import nibbles
from dsctl.codecs.grids import PIECE, chunk, chunks, divided, greatest, multiplied
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


def encode_all(
    values: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, kept: torch.Tensor | None
) -> dict[str, int]:
    """Fill codes (uint8 [rows, columns / 2]) and scales (E8M0) of a matrix; the counts go to the audit.

    `kept` are E8M0 codes of an earlier encoding, or `NONE`.

    Raises:
        BadBlock: a value is NaN or infinite, or 2^127 or more.
    """
    import torch

    out, restored = scales.view(torch.uint8), 0
    rounding = nibbles.E2m1(chunk(tuple(values.shape), (1, GROUP)), values.device)
    for rows, places in chunks(values.shape[0], values.shape[1], (1, GROUP)):
        quotients = rounding.magnitudes(values[rows])
        peaks = greatest(quotients, (1, GROUP), places.start)
        made = exponents(peaks)
        divided(quotients, powers(made), (1, GROUP), quotients)
        better = made + _doubled(quotients, peaks, made, rounding)
        if kept is not None:
            known = kept[places].view(torch.uint8).view(-1)
            restored += _restore(values[rows].view(-1, GROUP), known, better.view(-1), rounding)
        if not torch.equal(made, better):
            # Exact, but for quotients that are far too small for a code other than zero.
            multiplied(quotients, powers(made) / powers(better), (1, GROUP), quotients)
        rounding.write(quotients, values[rows], codes[rows], zeros=True)
        out[places] = better
    counts = {"groups_restored": restored, "groups_computed": out.numel() - restored}
    return {name: count for name, count in counts.items() if count}


def _doubled(
    quotients: torch.Tensor, peaks: torch.Tensor, scales: torch.Tensor, rounding: nibbles.E2m1
) -> torch.Tensor:
    """Mask of the groups whose values are also codes at twice the scale: all are 0, 1, 2, 3, 4 or 6, the largest 6."""
    import torch

    found = ((peaks == powers(scales) * 6) & (scales < 254)).view(-1)
    places = found.nonzero().view(-1)
    if len(places):
        groups = torch.index_select(quotients.view(-1, GROUP), 0, places)
        less = rounding.rounded(groups * 0.5).mul_(2).sub_(groups).abs_()
        found[places] = less.view(torch.int32).amax(1) == 0
    return found.view(scales.shape)


def _restore(values: torch.Tensor, kept: torch.Tensor, scales: torch.Tensor, rounding: nibbles.E2m1) -> int:
    """Use kept scales for the groups that they restore exactly; return the number of these groups."""

    places = (kept != NONE).nonzero().view(-1)
    if not len(places):
        return 0
    held, factors = values[places].abs().float(), powers(kept[places]).view(-1, 1)
    again = rounding.rounded(held / factors).mul_(factors)
    same = (again == held).all(1)
    scales[places[same]] = kept[places[same]]
    return int(same.sum())


def odd(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Mask of the scales (E8M0 [rows, groups]) of packed codes ([rows, columns / 2]) that `encode` would not choose."""
    import torch

    codes, scales = codes.view(torch.uint8), scales.view(torch.uint8)
    found = torch.empty(scales.shape, dtype=torch.bool)
    for rows, places in chunks(codes.shape[0], 2 * codes.shape[1], (1, GROUP), PIECE):
        found[places] = _odd(codes[rows], scales[places])
    return found


def _odd(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    import torch

    found = nibbles.sixteens(codes)
    second, third = found >> 1, found >> 2

    def some(bits: torch.Tensor) -> torch.Tensor:
        """Whether a group has a code whose lowest bit is set here."""
        groups = bits.view(*scales.shape, 2)
        return ((groups[..., 0] | groups[..., 1]) & nibbles.every(1)) != 0

    either = found | second
    # The codes are 1, 2 or 3 for 0.5, 1 and 1.5; 5, 6 or 7 for 3, 4 and 6.
    halves, large, sixes = some(found & ~third), some(either & third), some(found & second & third)
    beyond = (scales < ORDINARY[0]) | (scales > ORDINARY[1]) | ~large | (sixes & ~halves)
    return torch.where(some(either | third), beyond, scales != ZEROS)
