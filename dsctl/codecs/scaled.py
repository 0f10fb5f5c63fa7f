"""Eight-bit codes in one tensor and scales in a second one, one scale per row, block or group.

Shapes, for W [o, i]: codes F8_E4M3 or I8 [o, i]; scales BF16 or F32 [o, 1], [ceil(o/128), ceil(i/128)], or for MXFP8
E8M0 in U8 [o, i/32]. compressed-tensors 0.20 calls these float-quantized, int-quantized and mxfp8-quantized; INT8 by
blocks is SGLang's blockwise_int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from dsctl.codecs import dress, e4m3, nibbles, restoring, scales
from dsctl.codecs.codec import CODES, KEPT, SCALE, Form
from dsctl.codecs.grids import (
    PIECE,
    GroupShape,
    at_once,
    chunk,
    chunks,
    divided,
    divides,
    grid,
    grid_box,
    holds,
    multiplied,
    peaks,
    pieces,
    refuse_bad,
)
from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec

if TYPE_CHECKING:
    import torch

# Integers that become bfloat16 at a time, in place.
INTEGERS = 8 * PIECE
# Dtypes for E8M0.
_POWERS = ("U8", "F8_E8M0")
SCALE_DTYPES = {"BF16": ("BF16", "F32"), "F32": ("BF16", "F32"), "U8": ("U8", "F8_E8M0"), "F8_E8M0": ("U8", "F8_E8M0")}


@dataclass(frozen=True, slots=True)
class Scaled:
    """Codes and scales. A scale is `peak / divisor`, rounded to `scale_dtype`; MXFP8's is a power of two."""

    name: str
    codes: str
    group: GroupShape
    divisor: float
    dialect: str = "compressed-tensors"
    scale_dtype: str = "BF16"
    surveys: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = (CODES, SCALE)
    quantized: ClassVar[bool] = True
    plain: ClassVar[None] = None
    keeps_scales: ClassVar[bool] = True
    scales_follow: ClassVar[bool] = False
    scale_fmt: ClassVar[None] = None

    @property
    def form(self) -> Form:
        codes = {"F8_E4M3": "e4m3", "I8": "int8"}[self.codes]
        powers = self.scale_dtype in _POWERS
        return Form(codes, self.group, "E8M0" if powers else self.scale_dtype, "code * scale", powers)

    @property
    def block(self) -> tuple[int, int]:
        return self.group[0], self.group[1] or 1

    def specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        return {CODES: TensorSpec(self.codes, shape), SCALE: TensorSpec(self.scale_dtype, grid(shape, self.group))}

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> Scaled | None:
        scale = stored.get(SCALE)
        if scale is None or scale.dtype not in SCALE_DTYPES[self.scale_dtype] or not divides(shape, self.group):
            return None
        reader = replace(self, scale_dtype=scale.dtype)
        return reader if dict(stored) == reader.specs(shape) else None

    def box(self, part: str, box: Box, shape: tuple[int, ...]) -> Box:
        return box if part == CODES else grid_box(box, self.group, shape)

    def room(self, shape: tuple[int, ...], width: int, encoding: bool) -> int:
        # Four floats per value: the largest magnitudes' or quotients, their operand, and codes as floats.
        return 16 * chunk(shape, self.group)

    def stated(self, shape: tuple[int, ...]) -> dict[str, bytes]:
        return {}

    def decode(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> bool:
        """code * scale, rounded once to `out`'s dtype.

        Raises:
            BadBlock: a scale is NaN, infinite, zero or negative.
        """
        codes, scales, found = stored[CODES], stored[SCALE], False
        rows, columns = codes.shape
        if self.codes == "I8":
            # Scales in the dtype of the values need no other form.
            factors = scales if scales.dtype == out.dtype and at_once(out) else self._factors(scales)
            refuse_bad(factors)
            # Integers become bfloat16 in place, without scratch memory.
            for run, places in chunks(rows, columns, self.group, INTEGERS if at_once(out) else PIECE):
                multiplied(codes[run], factors[places], self.group, out[run])
            return False
        factors = self._factors(scales)
        refuse_bad(factors)
        for run, places in chunks(rows, columns, self.group, PIECE):
            found |= _decode_e4m3(codes[run], factors[places], self.group, out[run])
        return found

    def encode(self, values: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Scales from the largest magnitudes; the quotient is rounded to the dtype of the values, then to a code.

        That is compressed-tensors' arithmetic for bfloat16 weights (quantization/lifecycle/forward_helpers.py).
        Kept scales are used for the groups that they restore exactly.

        Raises:
            BadBlock: a value is NaN or infinite, or a kept scale is impossible.
        """
        codes, scales = stored[CODES], stored[SCALE]

        def write(rows: slice, places: slice) -> None:
            scales[places] = self._scales(peaks(values[rows], self.group, places.start), scales)
            factors = self._factors(scales[places])
            factors = factors.to(values.dtype) if holds(values.dtype, factors) else factors
            for piece in pieces(rows, values.shape[1]):
                self._quantize(values[piece], factors, codes[piece])

        if KEPT + SCALE in stored:
            return restoring.encode(self, self.group, values, stored, self._again, write)
        for rows, places in chunks(values.shape[0], values.shape[1], self.group):
            write(rows, places)
        return {}

    def _again(self, values: torch.Tensor, known: Mapping[str, torch.Tensor], codes: torch.Tensor) -> None:
        """Codes by kept scales."""
        # Quotients in bfloat16 may be half a step off.
        self._quantize(values, self._factors(known[SCALE]), codes)

    def _scales(self, largest: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        if self.name == "mxfp8":
            return scales.exponents(largest, 8).view(like.dtype)
        if self.name == "int8-block":
            largest = largest.clamp_min(scales.INT8_PEAK)
        return scales.fraction(largest, self.divisor, like.dtype)

    def _factors(self, stored: torch.Tensor) -> torch.Tensor:
        import torch

        if self.scale_dtype in _POWERS:
            return scales.powers(stored.view(torch.uint8))
        return stored.float()

    def _quantize(self, values: torch.Tensor, factors: torch.Tensor, out: torch.Tensor) -> None:
        """Codes of quotients, which are rounded to the dtype of the factors first."""
        import torch

        quotients = torch.empty_like(values, dtype=factors.dtype)
        divided(values.to(factors.dtype), factors, self.group, quotients)
        if self.codes == "I8":
            # SGLang's blocks, of largest code 127, never reach -128: their largest magnitude is 127 scales.
            nibbles.integers(quotients, 8, out, torch.empty_like(values, dtype=torch.float32))
            return
        out.copy_(quotients.clamp_(-448, 448))

    def config(self) -> dict[str, Any] | None:
        if self.name == "int8-block":
            return {
                "activation_scheme": "dynamic",
                "quant_method": "blockwise_int8",
                "weight_block_size": list(self.group),
            }
        return dress.config(*dress.SCHEMES[self.name])


def _decode_e4m3(codes: torch.Tensor, factors: torch.Tensor, group: GroupShape, out: torch.Tensor) -> bool:
    import torch

    codes = codes.view(torch.uint8)
    if group[0] > 1 or not codes.numel():
        return e4m3.decode(codes, factors, out, group)
    # Groups of one row in sequence are the blocks of one long row.
    width = codes.numel() // factors.numel()
    return e4m3.decode(codes.view(1, -1), factors.view(1, -1), out.view(1, -1), (1, width))


def formats() -> dict[str, Scaled]:
    """The formats of this kind by name."""
    whole_row, block = (1, 0), (128, 128)
    made = (
        Scaled("fp8-channel", "F8_E4M3", whole_row, 448.0),
        Scaled("int8-channel", "I8", whole_row, 127.5),
        Scaled("int8-block", "I8", block, 127.0, "deepseek", "F32"),
        Scaled("mxfp8", "F8_E4M3", (1, 32), 448.0, scale_dtype="U8"),
    )
    return {codec.name: codec for codec in made}
