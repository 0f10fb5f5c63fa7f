"""E4M3 codes with block scales, to and from floats. Pure kernels on torch tensors; torch is imported when called.

Every result equals, bit for bit, the plain formula of deepseek-ai/DeepSeek-V3 (README_WEIGHTS.md, inference/kernel.py):
decode is `float32(code) * scale`, rounded to the output's dtype; encode is `E4M3(clamp(float32(x) / scale, +-448))`, a
true division, rounded to nearest even. Codes are uint8 [rows, columns], values bfloat16, float16 or float32 of that
shape, scales float32 [ceil(rows / block[0]), ceil(columns / block[1])]. Memory beyond these does not grow with rows:
see `room`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING

from dsctl.codecs.grids import PIECE, chunk, chunks, pieces, products

if TYPE_CHECKING:
    import torch

Block = tuple[int, int]
BLOCK: Block = (128, 128)
LARGEST = 448.0
SMALLEST_PEAK = 1e-4
# Scales whose product with each bias used below neither overflows nor loses bits; other scales use the plain formula.
ORDINARY = (2.0**-100, 2.0**8)
# Values quantized at a time, in whole rows: small enough for the cache, large enough to outweigh the cost of calls.
CHUNK = 1 << 18


@dataclass(frozen=True, slots=True)
class _Float:
    """A float dtype: its integer type, the shift that aligns E4M3's fields, log2 of the bias that is then missing."""

    integer: torch.dtype
    sign: int
    shift: int
    bias: int


class NotFinite(ValueError):
    """A value is NaN or infinite; it has the block."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__(f"NaN or infinity in block [{row}, {column}]")
        self.row, self.column = row, column


def decode(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor, block: Block = BLOCK) -> bool:
    """Write float32(code) * scale into `out`; return whether a code may be NaN.

    NaN codes give NaN, with the sign and payload of torch's cast.
    """
    if not codes.numel():
        return False
    columns, found = scales.shape[1] * block[1], False
    height = min(len(codes), max(1, PIECE // columns))
    words = out.new_empty((height, columns), dtype=_float(out.dtype).integer)
    cpu, ordinary = codes.device.type == "cpu", _ordinary(scales)
    factors = scales * 2.0 ** _float(out.dtype).bias
    for band, places in chunks(len(codes), columns, block, PIECE):
        for rows in pieces(band, columns):
            part = codes[rows]
            if cpu and (ordinary or _ordinary(scales[places])) and not _has_nan(part):
                _decode_quickly(part, factors[places], out[rows], words[: len(part)], block[0])
            else:
                found = True
                _decode_plainly(part, scales[places], out[rows], block)
    return found


def encode(values: torch.Tensor, out: torch.Tensor, block: Block = BLOCK, power_of_two: bool = False) -> torch.Tensor:
    """Fill `out` with codes and return their scales by `recipe`.

    Raises:
        NotFinite: a value is NaN or infinite.
    """
    import torch

    scales = values.new_empty(_grid(values, block), dtype=torch.float32)
    scratch = _Scratch.of(values, block)
    for index, rows in _bands(values, block):
        band, peaks = scratch.load(values[rows], index)
        scales[index] = recipe(peaks, power_of_two)
        band.quantize(values[rows], peaks, scales[index], out[rows])
    return scales


def encode_kept(values: torch.Tensor, scales: torch.Tensor, out: torch.Tensor, block: Block = BLOCK) -> torch.Tensor:
    """Encode with given scales; bool [blocks], true where decoding to `values.dtype` gives `values` bit for bit.

    Raises:
        NotFinite: a value is NaN or infinite.
    """
    import torch

    same = torch.empty_like(scales, dtype=torch.bool)
    scratch = _Scratch.of(values, block)
    for index, rows in _bands(values, block):
        band, peaks = scratch.load(values[rows], index)
        band.quantize(values[rows], peaks, scales[index], out[rows])
        same[index] = band.reproduced(values[rows], out[rows], scales[index])
    return same


def encode_restoring(
    values: torch.Tensor, kept: torch.Tensor, out: torch.Tensor, block: Block = BLOCK, power_of_two: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode with the kept scales where that is exact, else by the recipe; return scales and a mask of kept ones.

    Raises:
        NotFinite: a value is NaN or infinite.
    """
    import torch

    scales, same = kept.clone(), torch.empty_like(kept, dtype=torch.bool)
    scratch = _Scratch.of(values, block)
    for index, rows in _bands(values, block):
        band, peaks = scratch.load(values[rows], index)
        band.quantize(values[rows], peaks, kept[index], out[rows])
        same[index] = band.reproduced(values[rows], out[rows], kept[index])
        if not same[index].all():
            scales[index] = torch.where(same[index], kept[index], recipe(peaks, power_of_two))
            band, _ = scratch.load(values[rows], index)
            band.quantize(values[rows], peaks, scales[index], out[rows])
    return scales, same


def recipe(peaks: torch.Tensor, power_of_two: bool) -> torch.Tensor:
    """The scales of blocks from their largest magnitudes (float32): max(peak, 1e-4) / 448, or the power of two above.

    deepseek-ai/DeepGEMM deep_gemm/utils/math.py, per_block_cast_to_fp8 and ceil_to_ue8m0. Only the scales follow it:
    that function multiplies by reciprocals, and if scales are not powers of two, some codes differ.
    """
    import torch

    clamped = peaks.clamp_min(SMALLEST_PEAK)
    # Divide by a tensor: torch on CUDA replaces division by a number with a product by its reciprocal.
    scales = clamped / torch.full_like(clamped, LARGEST)
    if not power_of_two:
        return scales
    return ((scales.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)


def is_power_of_two(scales: torch.Tensor) -> torch.Tensor:
    """Mask of the scales that are powers of two: bool, same shape."""
    import torch

    # In float64, float32's subnormals are normal numbers.
    return torch.frexp(scales.double()).mantissa == 0.5


def bad_scales(scales: torch.Tensor) -> tuple[int, int, float] | None:
    """Row, column and value of the first scale that is NaN, infinite, zero or negative, or None."""
    bad = (~((scales > 0) & scales.isfinite())).nonzero()
    if not len(bad):
        return None
    row, column = bad[0].tolist()
    return row, column, float(scales[row, column])


@lru_cache
def _float(dtype: torch.dtype) -> _Float:
    import torch

    return {
        torch.bfloat16: _Float(torch.int16, -1 << 15, 4, 120),
        torch.float16: _Float(torch.int16, -1 << 15, 7, 8),
        torch.float32: _Float(torch.int32, -1 << 31, 20, 120),
    }[dtype]


def _grid(matrix: torch.Tensor, block: Block) -> tuple[int, int]:
    return -(-matrix.shape[0] // block[0]), -(-matrix.shape[1] // block[1])


def _bands(matrix: torch.Tensor, block: Block) -> Iterator[tuple[int, slice]]:
    """Each row of blocks, with its rows of the matrix."""
    count = _grid(matrix, block)[0] if matrix.numel() else 0
    starts = ((index, index * block[0]) for index in range(count))
    return ((index, slice(start, min(start + block[0], len(matrix)))) for index, start in starts)


def room(shape: tuple[int, int], block: Block, width: int, encoding: bool) -> int:
    """The most bytes that encoding, or else decoding, needs beside its arguments; `width` is the size of a value."""
    columns = -(-shape[1] // block[1]) * block[1]
    # Columns of a partial block are decoded separately.
    words = width * (1 if columns == shape[1] else 2)
    if not encoding:
        return max(8, words) * chunk((shape[0], columns), block)
    rows = min(block[0], shape[0])
    return words * rows * columns + 9 * min(rows * columns, max(CHUNK, columns))


def _spread(scales: torch.Tensor, columns: int, size: int) -> torch.Tensor:
    """One scale per column from one per block."""
    return scales.repeat_interleave(size)[:columns]


def _decode_quickly(
    codes: torch.Tensor, factors: torch.Tensor, out: torch.Tensor, words: torch.Tensor, height: int
) -> None:
    """Decode rows of one row of blocks, or whole rows of blocks of this height; no code is NaN, scales are ordinary.

    `words` is integer scratch, padded to whole blocks. Each code's fields are moved to their places in `out.dtype`,
    subnormals included; the factors follow: scales with the missing bias.
    """
    import torch

    columns, into, padded = codes.shape[1], _float(out.dtype), words.view(out.dtype)
    words[:, :columns].copy_(codes.view(torch.int8)).mul_(1 << into.shift).bitwise_and_(into.sign | 0x7F << into.shift)
    if len(factors) > 1:
        factors = factors.repeat_interleave(height, 0)[: len(codes)]
    shape = len(codes), factors.shape[1], -1
    direct = out.is_contiguous() and out.shape == words.shape
    products(padded.view(shape), factors, (out if direct else padded).view(shape))
    if not direct:
        out.copy_(padded[:, :columns])


def _decode_plainly(codes: torch.Tensor, scales: torch.Tensor, out: torch.Tensor, block: Block) -> None:
    """The same for any codes and scales, by the formula itself."""
    import torch

    for index, band in _bands(codes, block):
        each = _spread(scales[index], codes.shape[1], block[1])
        for rows in pieces(band, codes.shape[1], CHUNK):
            out[rows].copy_(codes[rows].view(torch.float8_e4m3fn).float().mul_(each))


def _has_nan(codes: torch.Tensor) -> bool:
    """Whether 0x7f or 0xff occurs: the largest signed or unsigned byte."""
    import torch

    return int(codes.view(torch.int8).amax()) == 0x7F or int(codes.amax()) == 0xFF


def _ordinary(scales: torch.Tensor) -> bool:
    return float(scales.amin()) >= ORDINARY[0] and float(scales.amax()) < ORDINARY[1]


@dataclass(frozen=True, slots=True)
class _Scratch:
    """Scratch memory of encoding, padded to whole blocks of columns: words for a band, the rest for a chunk of rows."""

    size: int
    words: torch.Tensor
    quotients: torch.Tensor
    steps: torch.Tensor
    codes: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor, block: Block) -> _Scratch:
        import torch

        band, columns = min(block[0], values.shape[0]), _grid(values, block)[1] * block[1]
        chunk = min(band, max(1, CHUNK // max(1, columns)))
        words = values.new_empty((band, columns), dtype=_float(values.dtype).integer)
        floats = values.new_empty((2, chunk, columns), dtype=torch.float32)
        return cls(block[1], words, floats[0], floats[1], values.new_empty((chunk, columns), dtype=torch.uint8))

    def load(self, values: torch.Tensor, index: int) -> tuple[_Scratch, torch.Tensor]:
        """Take the magnitudes of a band; return the scratch cut to it and each block's largest, float32 [blocks]."""
        import torch

        columns, words = values.shape[1], self.words[: len(values)]
        words[:, columns:] = 0
        torch.bitwise_and(values.view(words.dtype), ~_float(values.dtype).sign, out=words[:, :columns])
        # Magnitudes have the same order as their bits, with infinity and NaN on top.
        peaks = words.amax(0).view(-1, self.size).amax(1).view(values.dtype).float()
        if not float(peaks.amax()) < inf:
            raise NotFinite(index, int(peaks.isfinite().logical_not().nonzero()[0]))
        return replace(self, words=words), peaks

    def quantize(self, values: torch.Tensor, peaks: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
        """Write the codes of the loaded band; this overwrites the loaded values."""
        import torch

        if not (scales >= ORDINARY[0]).all():
            each = _spread(scales, values.shape[1], self.size)
            for rows in pieces(slice(0, len(values)), values.shape[1]):
                quotients = values[rows].float() / each
                out[rows].copy_(quotients.clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn).view(torch.uint8))
            return
        # The recipe's own scales never need clamping: their quotients round to 448 at most.
        saturate = bool((peaks > scales * (LARGEST + 1)).any())
        step = len(self.codes)
        for begin in range(0, len(values), step):
            rows = slice(begin, begin + step)
            self._quantize_chunk(values[rows], self.words[rows], scales, saturate, out[rows])

    def _quantize_chunk(
        self, values: torch.Tensor, words: torch.Tensor, scales: torch.Tensor, saturate: bool, out: torch.Tensor
    ) -> None:
        """Round to nearest even by an addition.

        A quotient in [2^e, 2^(e+1)) plus 2^(e+20) ends where E4M3 ends, so that the sum rounds as E4M3 does and its low
        byte counts steps of the mantissa. Holding e at -6 or above makes subnormals. Quotients are taken 2^7 too large,
        so that e = -6 has the exponent field 128, which leaves no bits in the code's byte.
        """
        import torch

        rows, columns = values.shape
        quotients, steps, codes = self.quotients[:rows], self.steps[:rows], self.codes[:rows]
        quotients.copy_(words.view(values.dtype)).view(rows, -1, self.size).div_((scales * 2.0**-7)[:, None])
        if saturate:
            quotients.clamp_max_(LARGEST * 2.0**7)
        sums, exponents = quotients.view(torch.int32), steps.view(torch.int32)
        torch.bitwise_and(sums, 0x7F800000, out=exponents)
        quotients.add_(steps.clamp_min_(2.0), alpha=2.0**20)
        codes.copy_(sums.add_(exponents.bitwise_right_shift_(20)))
        # A negative float is, as an integer, below -128, whose byte is the sign's.
        torch.clamp(values.view(words.dtype), -0x80, 0, out=words[:, :columns])
        out.copy_(words[:, :columns]).add_(codes[:, :columns])

    def reproduced(self, values: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Mask of the blocks whose codes and scales give the band's values bit for bit: bool [blocks]."""
        columns = values.shape[1]
        words = self.words[:, :columns]
        if _ordinary(scales) and not _has_nan(codes):
            factors = (scales * 2.0 ** _float(values.dtype).bias)[None]
            _decode_quickly(codes, factors, words.view(values.dtype), self.words, len(codes))
        else:
            _decode_plainly(codes, scales[None], words.view(values.dtype), (len(codes), self.size))
        words.bitwise_xor_(values.view(words.dtype))
        self.words[:, columns:] = 0
        largest, smallest = self.words.amax(0), self.words.amin(0)
        return ((largest == 0) & (smallest == 0)).view(-1, self.size).all(1)
