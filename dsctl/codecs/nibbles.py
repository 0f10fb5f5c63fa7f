"""Two four-bit codes in a byte, the lower bits first; integers, and E2M1 floats (OCP MX v1.0, section 5.3.3). Pure.

Torch is imported when called.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
# At this float32 one step of the mantissa is 1: a sum with it is rounded to nearest even.
MAGIC = 1.5 * 2.0**23


def pack(codes: torch.Tensor, out: torch.Tensor) -> None:
    """Join neighbouring codes (uint8, below 16, contiguous) into bytes of `out` (uint8, half as many)."""
    import torch

    pairs = codes.view(torch.int16)
    # A copy to fewer bits keeps the lower bits.
    out.view(torch.int8).copy_(pairs.bitwise_or_(pairs >> 4))


def split(packed: torch.Tensor) -> torch.Tensor:
    """Unpacked codes, int8 from 0 to 15, from packed ones (uint8, contiguous); twice as many columns."""
    import torch

    pairs = packed.to(torch.int16)
    codes: torch.Tensor = pairs.bitwise_or_(pairs << 4).bitwise_and_(0x0F0F).view(torch.int8)
    return codes


def widened(packed: torch.Tensor, words: torch.Tensor) -> None:
    """Fill `words` (bfloat16, contiguous, twice as many columns) with 128 + code, for packed codes (uint8).

    A bfloat16 of 128 to 255 has steps of 1: the code is the end of its mantissa.
    """
    import torch

    pairs = words.view(torch.int32).copy_(packed)
    pairs.mul_(1 + (1 << 12)).bitwise_and_(0x000F000F).bitwise_or_(0x43004300)


def unpacked(packed: torch.Tensor, table: tuple[float, ...], dtype: torch.dtype) -> torch.Tensor:
    """The values of packed codes (uint8, contiguous), twice as many columns, in `dtype`."""
    import torch

    pairs = _pairs(table, dtype, packed.device)
    found = torch.index_select(pairs, 0, packed.view(-1).to(torch.int32))
    return found.view(dtype).view(*packed.shape[:-1], -1)


@lru_cache
def _pairs(table: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The two values of each of the 256 bytes, as one integer."""
    import torch

    values = torch.tensor(table, dtype=dtype, device=device)
    pairs = torch.stack((values.repeat(16), values.repeat_interleave(16)), 1).contiguous()
    return pairs.view(torch.int64 if dtype == torch.float32 else torch.int32).view(-1)


def integers(quotients: torch.Tensor, bits: int, out: torch.Tensor) -> None:
    """Fill `out` (uint8 or int8) with quotients rounded to nearest even and clamped to `bits` bits.

    In uint8 they are offset by half the range, in int8 signed. Quotients are finite, of any float dtype, and
    overwritten.
    """
    import torch

    half = 1 << (bits - 1)
    wide = quotients.float().clamp_(-half, half - 1).add_(MAGIC + (half if out.dtype == torch.uint8 else 0))
    out.view(torch.int8).copy_(wide.view(torch.int32))


def signs(values: torch.Tensor, quotients: torch.Tensor) -> torch.Tensor:
    """The sign bits of E2M1 codes (uint8: 0 or 8): the values', of any float dtype, where the quotient is not zero."""
    import torch

    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int16)
    # A cast to bool is a comparison with zero, several times as fast as torch's own.
    return bits.clamp(-8, 0).to(torch.uint8).bitwise_and_(8).mul_(quotients.to(torch.bool).view(torch.uint8))


def e2m1(quotients: torch.Tensor) -> torch.Tensor:
    """Codes (uint8) of float32 magnitudes, rounded to nearest even and clamped to 6. Overwrites them.

    Rounded by an addition, as in dsctl/codecs/e4m3.py: a magnitude in [2^e, 2^(e+1)) plus 2^(e+22) ends where
    E2M1 ends, and its low byte counts steps of the mantissa. Holding e at 0 or above makes subnormals. The field of the
    exponent, twice 127 + e, leaves the code's byte 2 short.
    """
    import torch

    exponents = quotients.view(torch.int32).bitwise_and(0x7F800000)
    quotients.add_(exponents.view(torch.float32).clamp_min_(1), alpha=2.0**22)
    codes = quotients.view(torch.int32).add_(exponents.bitwise_right_shift_(22)).to(torch.uint8)
    return codes.add_(2).clamp_max_(7)
