"""Integers packed into words of 32 bits, with a scale per group: INT4 and INT8 weights with float activations.

compressed-tensors' pack-quantized: `X.weight_packed` I32 [o, i * bits / 32], element n of a word in bits n * `bits`
upwards, offset by half the range; `X.weight_scale` BF16 [o, i / group]; `X.weight_shape` I64 [2].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from struct import pack
from typing import TYPE_CHECKING, Any, ClassVar

from dsctl.codecs import dress, nibbles, restoring, search
from dsctl.codecs.codec import CODES, KEPT, SCALE, SHAPE, Form
from dsctl.codecs.grids import (
    FEW_TO_DIVIDE,
    at_once,
    chunk,
    chunks,
    divided,
    divides,
    grid,
    grid_box,
    multiplied,
    peaks,
    products,
    refuse_bad,
)
from dsctl.codecs.scales import fraction
from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Packed:
    """Symmetric integers of `bits` bits in groups of `size` columns; `search` finds the scale with the least error."""

    name: str
    bits: int
    size: int
    scale_dtype: str = "BF16"
    shape_dtype: str = "I64"
    dialect: str = "compressed-tensors-packed"
    search: bool = field(default=False, compare=False)
    surveys: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = (CODES, SCALE, SHAPE)
    quantized: ClassVar[bool] = True
    plain: ClassVar[None] = None
    keeps_scales: ClassVar[bool] = True
    scales_follow: ClassVar[bool] = False
    scale_fmt: ClassVar[None] = None

    @property
    def form(self) -> Form:
        return Form(f"int{self.bits} in words of 32 bits", self.group, self.scale_dtype, "code * scale")

    @property
    def block(self) -> tuple[int, int]:
        return 1, self.size

    @property
    def group(self) -> tuple[int, int]:
        return 1, self.size

    def specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        scales = grid(shape, self.group)
        words = -(-shape[1] * self.bits // 32)
        return {
            CODES: TensorSpec("I32", (shape[0], words)),
            SCALE: TensorSpec(self.scale_dtype, scales),
            SHAPE: TensorSpec(self.shape_dtype, (2,)),
        }

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> Packed | None:
        if set(stored) != set(self.parts) or not divides(shape, self.group):
            return None
        scale, said = stored[SCALE].dtype, stored[SHAPE].dtype
        if scale not in ("BF16", "F16", "F32") or said not in ("I64", "I32"):
            return None
        reader = replace(self, scale_dtype=scale, shape_dtype=said)
        return reader if dict(stored) == reader.specs(shape) else None

    def box(self, part: str, box: Box, shape: tuple[int, ...]) -> Box:
        if part == SHAPE:
            return Box.whole((2,))
        scales = grid_box(box, self.group, shape)
        if part == SCALE:
            return scales
        each = 32 // self.bits
        return Box((box.start[0], box.start[1] // each), (box.stop[0], box.stop[1] // each))

    def room(self, shape: tuple[int, ...], width: int, encoding: bool) -> int:
        # Quotients, their operand, and codes as bytes and as floats; a search also has restored values and all scales.
        return (22 if self.search else 16) * chunk(shape, self.group)

    def stated(self, shape: tuple[int, ...]) -> dict[str, bytes]:
        return {SHAPE: pack("<2q" if self.shape_dtype == "I64" else "<2i", *shape)}

    def decode(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """(code - half the range) * scale, rounded once to `out`'s dtype.

        Raises:
            BadBlock: a scale is NaN, infinite, zero or negative.
        """
        import torch

        packed, factors = stored[CODES].view(torch.uint8), stored[SCALE].float()
        refuse_bad(factors)
        decode = self._widened if self._exact(factors, out) else self._apart
        for rows, places in chunks(out.shape[0], out.shape[1], self.group):
            decode(packed[rows], factors[places], out[rows])

    def _exact(self, factors: torch.Tensor, out: torch.Tensor) -> bool:
        """Whether 128 + code, times a factor, is exact in float32: both have 8 bits, without overflow."""
        import torch

        narrow = self.bits == 4 and self.scale_dtype == "BF16" and self.size >= FEW_TO_DIVIDE
        return narrow and at_once(out) and bool((factors < torch.finfo(torch.float32).max / 256).all())

    def _widened(self, packed: torch.Tensor, factors: torch.Tensor, out: torch.Tensor) -> None:
        nibbles.widened(packed, out)
        groups = out.view(1, factors.numel(), self.size)
        products(groups, factors.view(1, -1), groups, less=128 + 8)

    def _apart(self, packed: torch.Tensor, factors: torch.Tensor, out: torch.Tensor) -> None:
        multiplied(self._unpacked(packed), factors, self.group, out)

    def _unpacked(self, packed: torch.Tensor) -> torch.Tensor:
        """Signed integers (int8)."""
        import torch

        if self.bits == 4:
            return nibbles.split(packed).sub_(8)
        return packed.bitwise_xor(128).view(torch.int8)

    def encode(self, values: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Scales of peak / 7.5 or 127.5; the quotient is rounded to the dtype of the values, then to an integer.

        That is compressed-tensors' arithmetic for bfloat16 weights (quantization/lifecycle/forward_helpers.py).
        Kept scales are used for the groups that they restore exactly.

        Raises:
            BadBlock: a value is NaN or infinite, or a kept scale is impossible.
        """
        import torch

        packed, scales = stored[CODES].view(torch.uint8), stored[SCALE]

        def write(rows: slice, places: slice) -> None:
            band = values[rows]
            scales[places] = self._scales(band, peaks(band, self.group, places.start), scales.dtype)
            self._quantize(self._quotients(band, scales[places]), packed[rows])

        if KEPT + SCALE in stored:
            return restoring.encode(self, self.group, values, stored, self._again, write)
        for rows, places in chunks(values.shape[0], values.shape[1], self.group):
            write(rows, places)
        return {}

    def _again(self, values: torch.Tensor, known: Mapping[str, torch.Tensor], codes: torch.Tensor) -> None:
        """Codes by kept scales."""
        import torch

        # Quotients in bfloat16 may be half a step off.
        quotients = torch.empty_like(values, dtype=torch.float32)
        divided(values.float(), known[SCALE].float(), self.group, quotients)
        self._quantize(quotients, codes.view(torch.uint8))

    def _scales(self, values: torch.Tensor, largest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        half = 1 << (self.bits - 1)
        scales = fraction(largest, half - 0.5, dtype)
        if not self.search:
            return scales

        def restore(values: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
            out.copy_(self._quotients(values, scales))
            out.clamp_(-half, half - 1).round_()
            multiplied(out, scales.float(), self.group, out)

        tried = [(largest * share / 7.5).to(dtype) for share in search.SHARES]
        return search.best(values, [scales, *tried], restore)

    def _quotients(self, values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Quotients in the dtype of the values if scales have it, else in float32."""
        import torch

        dtype = values.dtype if scales.dtype == values.dtype else torch.float32
        quotients = torch.empty_like(values, dtype=dtype)
        divided(values.to(dtype), scales.to(dtype), self.group, quotients)
        return quotients

    def _quantize(self, quotients: torch.Tensor, out: torch.Tensor) -> None:
        """Rounded quotients, offset by half the range."""
        import torch

        sums = torch.empty_like(quotients, dtype=torch.float32)
        if self.bits == 8:
            nibbles.integers(quotients, 8, out, sums)
            return
        codes = torch.empty_like(quotients, dtype=torch.uint8)
        nibbles.integers(quotients, 4, codes, sums)
        nibbles.pack(codes, out, sums.view(-1).view(torch.uint8)[: codes.numel()].view(codes.shape))

    def config(self) -> dict[str, Any] | None:
        return dress.config("pack-quantized", dress.grouped("int", self.bits, self.size), None)


def formats() -> dict[str, Packed]:
    """The formats of this kind by name."""
    made = Packed("int4-group", 4, 128), Packed("int4-group-32", 4, 32), Packed("int8-group", 8, 128)
    return {codec.name: codec for codec in made}
