"""Scales of four-bit groups as E4M3 powers of two under a global one: MXFP4 becomes NVFP4 with unchanged codes.

A group of 32 becomes two groups of 16 with the same scale. The largest scale of a parameter becomes 2^8; E4M3 has
powers of two down to 2^-9, so scales may differ by 2^17. Groups of zeros may have any scale. Pure; torch is imported
when called.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from dsctl.codecs import nibbles
from dsctl.codecs.codec import CODES, GLOBAL_SCALE, INEXACT, INPUT_SCALE, SCALE, SWEPT, Codec, Inexact

if TYPE_CHECKING:
    import torch

# The powers of two that E4M3 has.
LARGEST, SMALLEST = 8, -9
_BIAS = 127


def bounds(scales: torch.Tensor, codes: torch.Tensor | None = None) -> tuple[int, int]:
    """The smallest and the largest scale (E8M0); with codes, only of groups that are not all zeros.

    Without any such group it is (255, 0).
    """
    import torch

    found = scales.view(torch.uint8)
    if not found.numel():
        return 255, 0
    if codes is None:
        return int(found.amin()), int(found.amax())
    filled = _filled(codes, found.shape)
    return int(found.masked_fill(~filled, 255).amin()), int(found.masked_fill(~filled, 0).amax())


def _filled(codes: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Mask of the groups that are not all zeros (of either sign)."""
    import torch

    groups = nibbles.sixteens(codes.view(torch.uint8)).view(*shape, 2)
    return ((groups[..., 0] | groups[..., 1]) & nibbles.every(7)) != 0


def regrouped(
    target: Codec, lossy: bool, held: Mapping[str, torch.Tensor], out: Mapping[str, torch.Tensor], largest: int
) -> dict[str, int]:
    """Fill the parts of an NVFP4 region. `largest` is the largest scale of the parameter and of those fused with it.

    Raises:
        Inexact: a group's scale is too small and losses are not allowed; it has the first such group.
    """
    import torch

    scales = held[SCALE].view(torch.uint8).to(torch.int32)
    powers = scales.sub_(largest).add_(LARGEST)
    below = powers < SMALLEST
    lost = int(_lost(below, held[CODES], lossy, powers)) if bool(below.any()) else 0
    out[CODES].view(torch.uint8).copy_(held[CODES].view(torch.uint8))
    table = _codes(_GROUP // target.form.group[1], powers.device)
    places = powers.clamp_(SMALLEST - 1, LARGEST).sub_(SMALLEST - 1)
    torch.index_select(table, 0, places.view(-1), out=out[SCALE].view(table.dtype).view(-1))
    exponent, multiplied = largest - LARGEST - _BIAS, INPUT_SCALE in out
    out[GLOBAL_SCALE].fill_(2.0 ** (exponent if multiplied else -exponent))
    if multiplied:
        out[INPUT_SCALE].fill_(1.0)
    return {SWEPT: powers.numel()} | ({INEXACT: lost} if lost else {})


_GROUP = 32


def _lost(below: torch.Tensor, codes: torch.Tensor, lossy: bool, powers: torch.Tensor) -> int:
    losing = below & _filled(codes, below.shape)
    if not lossy and bool(losing.any()):
        row, column = losing.nonzero()[0].tolist()
        far = LARGEST - int(powers[row, column])
        what = f"a scale is 2^{far} below the largest: NVFP4 holds 2^{LARGEST - SMALLEST}"
        raise Inexact(what, row, column)
    return int(losing.sum())


@lru_cache
def _codes(times: int, device: torch.device) -> torch.Tensor:
    """E4M3 codes of zero and of the powers of two from `SMALLEST` to `LARGEST`, each 2, 4 or 8 times in an integer."""
    import torch

    exponents = torch.arange(SMALLEST, LARGEST + 1, dtype=torch.float32, device=device)
    powers = torch.cat((exponents.new_zeros(1), torch.exp2(exponents)))
    codes = powers.to(torch.float8_e4m3fn).view(torch.uint8).repeat_interleave(times)
    return codes.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[times])
