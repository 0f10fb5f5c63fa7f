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


def pack(codes: torch.Tensor, out: torch.Tensor, spare: torch.Tensor) -> None:
    """Join neighbouring codes (uint8, below 16, contiguous) into bytes of `out` (uint8, half as many).

    Overwrites the codes and `spare`, of their dtype and shape.
    """
    import torch

    pairs = codes.view(torch.int16)
    pairs.bitwise_or_(torch.bitwise_right_shift(pairs, 4, out=spare.view(torch.int16)))
    # A copy to fewer bits keeps the lower bits.
    out.view(torch.int8).copy_(pairs)


def sixteens(packed: torch.Tensor) -> torch.Tensor:
    """Sixteen codes in one integer of 64 bits: packed codes (uint8 [rows, columns / 2], contiguous) without a copy."""
    import torch

    if packed.storage_offset() % 8:
        packed = packed.clone()
    return packed.view(torch.int64)


def every(code: int) -> int:
    """An integer of 64 bits with sixteen times this code, which is below 8."""
    return code * 0x1111_1111_1111_1111


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


def unpacked(packed: torch.Tensor, table: tuple[float, ...], out: torch.Tensor) -> None:
    """Fill `out` (contiguous, any float dtype) with the values of packed codes (uint8, half as many columns)."""
    import torch

    pairs = _pairs(table, out.dtype, packed.device)
    torch.index_select(pairs, 0, packed.reshape(-1).to(torch.int32), out=out.view(pairs.dtype).view(-1))


@lru_cache
def _pairs(table: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The two values of each of the 256 bytes, as one integer."""
    import torch

    values = torch.tensor(table, dtype=dtype, device=device)
    pairs = torch.stack((values.repeat(16), values.repeat_interleave(16)), 1).contiguous()
    return pairs.view(torch.int64 if dtype == torch.float32 else torch.int32).view(-1)


def integers(quotients: torch.Tensor, bits: int, out: torch.Tensor, spare: torch.Tensor) -> None:
    """Fill `out` (uint8 or int8) with quotients rounded to nearest even and clamped to `bits` bits.

    In uint8 they are offset by half the range, in int8 signed. Quotients are finite, of any float dtype; `spare`,
    float32 of their shape and possibly the same tensor, is overwritten.
    """
    import torch

    half = 1 << (bits - 1)
    spare.copy_(quotients).clamp_(-half, half - 1).add_(MAGIC + (half if out.dtype == torch.uint8 else 0))
    out.view(torch.int8).copy_(spare.view(torch.int32))


class E2m1:
    """Rounding to E2M1, in scratch memory for up to `count` values (10 bytes each).

    Rounded by an addition, as in dsctl/codecs/e4m3.py: a magnitude in [2^e, 2^(e+1)) plus 2^(e+22) ends where
    E2M1 ends, and its low byte counts steps of the mantissa. Holding e at 0 or above makes subnormals.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        import torch

        self._floats = [torch.empty(count, device=device) for _ in range(2)]
        self._bytes = [torch.empty(count, dtype=torch.uint8, device=device) for _ in range(2)]

    def magnitudes(self, values: torch.Tensor) -> torch.Tensor:
        """The magnitudes of values (any float dtype), float32 of their shape, until the next call."""
        import torch

        found = self._floats[0][: values.numel()].view(values.shape)
        return torch.abs(found.copy_(values), out=found)

    def write(self, quotients: torch.Tensor, values: torch.Tensor, out: torch.Tensor, zeros: bool = False) -> None:
        """Fill packed `out` with the codes of float32 magnitudes, clamped to 6, with the values' signs.

        Overwrites the magnitudes, which may be those of `magnitudes`. `zeros`: zeros have signs, too.
        """
        import torch

        signs, codes = (one[: values.numel()].view(values.shape) for one in self._bytes)
        powers, integer = self._powers(quotients), torch.int32 if values.dtype == torch.float32 else torch.int16
        words = powers.view(-1).view(integer)[: values.numel()].view(values.shape)
        signs.copy_(torch.clamp(values.view(integer), -8, 0, out=words)).bitwise_and_(8)
        if not zeros:
            # A cast to bool is a comparison with zero, several times as fast as torch's own.
            signs.mul_(codes.view(torch.bool).copy_(quotients).view(torch.uint8))
        sums, exponents = self._summed(quotients, powers), powers.view(torch.int32)
        # The field of the exponent, twice 127 + e, leaves the code's byte 2 short.
        codes.copy_(sums.view(torch.int32).add_(exponents.bitwise_right_shift_(22)))
        codes.add_(2).clamp_max_(7).bitwise_or_(signs)
        pack(codes, out, signs)

    def rounded(self, quotients: torch.Tensor) -> torch.Tensor:
        """Round float32 magnitudes to those that codes have, in place."""
        powers = self._powers(quotients)
        return self._summed(quotients, powers).sub_(powers, alpha=2.0**22).clamp_max_(6)

    def _powers(self, quotients: torch.Tensor) -> torch.Tensor:
        return self._floats[1][: quotients.numel()].view(quotients.shape)

    def _summed(self, quotients: torch.Tensor, powers: torch.Tensor) -> torch.Tensor:
        import torch

        torch.bitwise_and(quotients.view(torch.int32), 0x7F800000, out=powers.view(torch.int32))
        return quotients.add_(powers.clamp_min_(1), alpha=2.0**22)
