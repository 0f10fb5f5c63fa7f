"""FP8 by blocks: E4M3 codes [o, i], multiplied by one scale per block [ceil(o/b), ceil(i/b)].

deepseek-ai/DeepSeek-V3 README_WEIGHTS.md. compressed-tensors stores the same form under different names, and chooses
scales by a different rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from dsctl.codecs import dress, e4m3, long_rows
from dsctl.codecs.codec import CODES, KEPT, OTHERS, SCALE, BadBlock, Form, Misaligned
from dsctl.codecs.scaled import Scaled
from dsctl.core.boxes import Box
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorSpec

if TYPE_CHECKING:
    import torch

# Powers of two from this one on come from values above 1.75 * 2^127, whose codes may round to 2^128.
TOO_LARGE = 2.0**120


@dataclass(frozen=True, slots=True)
class Fp8Block:
    """E4M3 with block scales: `scale_fmt` float32 (any value) or ue8m0 (powers of two); `scale_dtype` as stored.

    Without a `scale_fmt`, configs have no such field and scales follow compressed-tensors' rule, not DeepSeek's.
    """

    block: tuple[int, int] = (128, 128)
    scale_fmt: str | None = "float32"
    scale_dtype: str = "F32"
    dialect: str = "deepseek"
    surveys: ClassVar[bool] = False
    parts: ClassVar[tuple[str, ...]] = (CODES, SCALE)
    quantized: ClassVar[bool] = True
    plain: ClassVar[None] = None
    keeps_scales: ClassVar[bool] = True
    scales_follow: ClassVar[bool] = False

    @property
    def name(self) -> str:
        if self.scale_fmt is None:
            return "fp8-block-ct"
        return "fp8-block-e8m0" if self.scale_dtype == "F8_E8M0" else "fp8-block"

    @property
    def form(self) -> Form:
        powers = self.scale_fmt == "ue8m0" or self.scale_dtype == "F8_E8M0"
        return Form("e4m3", self.block, self.scale_dtype.removeprefix("F8_"), "code * scale", powers)

    @classmethod
    def declared(cls, quantization: Mapping[str, Any]) -> tuple[Fp8Block, ...]:
        """The codec for a `quantization_config` with quant_method fp8 and a `weight_block_size`."""
        if quantization.get("quant_method") != "fp8":
            return ()
        size = quantization.get("weight_block_size")
        sensible = [type(n) is int and 0 < n <= 1 << 16 for n in size] if isinstance(size, list) else []
        if not size or sensible != [True, True]:
            raise FormatError(f"config.json: weight_block_size {size!r} is not two positive integers")
        fmt = "ue8m0" if quantization.get("scale_fmt") == "ue8m0" else "float32"
        return (cls((size[0], size[1]), fmt),)

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The number of blocks that cover a matrix, including partial ones."""
        rows, columns = shape
        return -(-rows // self.block[0]), -(-columns // self.block[1])

    def specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        return {CODES: TensorSpec("F8_E4M3", shape), SCALE: TensorSpec(self.scale_dtype, self.grid(shape))}

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> Fp8Block | None:
        if len(shape) != 2 or set(stored) != {*self.parts} or stored[CODES] != TensorSpec("F8_E4M3", shape):
            return None
        scale, dtypes = stored[SCALE], ("F32", "BF16", "F8_E8M0") if self.scale_fmt else ("F32", "BF16")
        if scale.shape != self.grid(shape) or scale.dtype not in dtypes:
            return None
        return replace(self, scale_dtype=scale.dtype)

    def box(self, part: str, box: Box, shape: tuple[int, ...]) -> Box:
        if part == CODES:
            return box
        for begin, end, size, whole in zip(box.start, box.stop, self.block, shape, strict=True):
            if begin % size or (end % size and end != whole):
                raise Misaligned(f"a cut at {begin} to {end} of {whole} is not aligned with blocks of {size}")
        start = tuple(a // size for a, size in zip(box.start, self.block, strict=True))
        return Box(start, tuple(-(-b // size) for b, size in zip(box.stop, self.block, strict=True)))

    def room(self, shape: tuple[int, ...], width: int, encoding: bool) -> int:
        if self.scale_fmt is None:
            return self._dressed.room(shape, width, encoding)

        return long_rows.room((shape[0], shape[1]), self.block, width, encoding)

    def stated(self, shape: tuple[int, ...]) -> dict[str, bytes]:
        return {}

    def decode(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> bool:
        """float32(code) * scale, rounded once to `out`'s dtype.

        Raises:
            BadBlock: a scale is NaN, infinite, zero or negative.
        """
        import torch

        if self.scale_fmt is None:
            return self._dressed.decode(stored, out)
        scales = stored[SCALE].to(torch.float32)
        refuse_bad(scales)
        return long_rows.decode(stored[CODES].view(torch.uint8), scales, out, self.block)

    def encode(self, values: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """amax per block / 448, rounded up to a power of two for ue8m0; kept scales if they reproduce the values.

        Kept scales of a different format are rounded for ue8m0. Its own are used unchanged: releases that declare ue8m0
        have some scales that are not powers of two (deepseek-ai/DeepSeek-V3 issue 961: `o_proj` of V3.1).

        Raises:
            BadBlock: a value is NaN or infinite, or would be decoded to infinity.
        """
        import torch

        if self.scale_fmt is None:
            return self._dressed.encode(values, stored)
        codes, power_of_two = stored[CODES].view(torch.uint8), self.scale_fmt == "ue8m0"
        others = stored.get(OTHERS + SCALE)
        given = stored.get(KEPT + SCALE) if others is None else others
        restored = 0
        try:
            if given is None:
                scales = made = long_rows.encode(values, codes, self.block, power_of_two)
            else:
                kept = given.to(torch.float32)
                refuse_bad(kept)
                # An unusable kept scale is replaced by 1, which restores only what 1 restores.
                if others is not None and power_of_two:
                    kept = torch.where(e4m3.is_power_of_two(kept), kept, 1.0)
                scales, same = long_rows.encode_restoring(values, kept, codes, self.block, power_of_two)
                restored, made = int(same.sum()), scales.masked_fill(same, 0.0)
        except e4m3.NotFinite as error:
            raise BadBlock("NaN or infinity", error.row, error.column) from None
        if (made >= TOO_LARGE).any():
            row, column = (made >= TOO_LARGE).nonzero()[0].tolist()
            raise BadBlock("a value too large for its scale", row, column)
        counts = {"blocks_restored": restored, "blocks_computed": scales.numel() - restored}
        stored[SCALE].copy_(scales)
        return {name: count for name, count in counts.items() if count}

    @property
    def _dressed(self) -> Scaled:
        """The same by compressed-tensors' rule."""
        return Scaled(self.name, "F8_E4M3", self.block, 448.0, self.dialect, self.scale_dtype)

    def config(self) -> dict[str, Any] | None:
        if self.scale_fmt is None:
            return dress.config(*dress.SCHEMES[self.name])
        return dress.fp8(self.block, self.scale_fmt)


# The same form with compressed-tensors' names, scales by its rule in the dtype of the weights.
CT_BLOCKS = Fp8Block(scale_fmt=None, scale_dtype="BF16", dialect="compressed-tensors")


def refuse_bad(scales: torch.Tensor) -> None:
    """Refuse an impossible scale, with its block."""
    bad = e4m3.bad_scales(scales)
    if bad is not None:
        row, column, value = bad
        raise BadBlock(f"scale {value}", row, column)
