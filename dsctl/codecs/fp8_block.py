"""DeepSeek's FP8: E4M3 codes and one scale per block that the codes are multiplied by.

deepseek-ai/DeepSeek-V3 README_WEIGHTS.md. Stored as `X.weight` [o, i] and `X.weight_scale_inv` [ceil(o/b), ceil(i/b)].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from dsctl.codecs import KEPT, OTHERS, BadBlock, Misaligned, scaled
from dsctl.codecs.scaled import Scaled
from dsctl.core.boxes import Box
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorSpec

if TYPE_CHECKING:
    import torch

SCALE = "_scale_inv"
# Powers of two from here on come from values of more than 1.75 * 2^127, whose codes may be rounded to 2^128.
TOO_LARGE = 2.0**120


@dataclass(frozen=True, slots=True)
class Fp8Block:
    """E4M3 with block scales: `scale_fmt` float32 (any value) or ue8m0 (powers of two); `scale_dtype` as stored."""

    block: tuple[int, int] = (128, 128)
    scale_fmt: str = "float32"
    scale_dtype: str = "F32"
    surveys: ClassVar[bool] = False
    suffixes: tuple[str, ...] = ("", SCALE)

    @property
    def name(self) -> str:
        return "fp8-block-e8m0" if self.scale_dtype == "F8_E8M0" else "fp8-block"

    @classmethod
    def declared(cls, quantization: Mapping[str, Any]) -> tuple[Fp8Block, ...]:
        """The codec of a `quantization_config` with quant_method fp8 and a `weight_block_size`."""
        if quantization.get("quant_method") != "fp8":
            return ()
        size = quantization.get("weight_block_size")
        sensible = [type(n) is int and 0 < n <= 1 << 16 for n in size] if isinstance(size, list) else []
        if not size or sensible != [True, True]:
            raise FormatError(f"config.json: weight_block_size {size!r} is not two positive integers")
        fmt = "ue8m0" if quantization.get("scale_fmt") == "ue8m0" else "float32"
        return (cls((size[0], size[1]), fmt),)

    def grid(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """How many blocks cover a matrix, partial ones counted."""
        rows, columns = shape
        return -(-rows // self.block[0]), -(-columns // self.block[1])

    def specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        return {"": TensorSpec("F8_E4M3", shape), SCALE: TensorSpec(self.scale_dtype, self.grid(shape))}

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> Fp8Block | None:
        if len(shape) != 2 or set(stored) != {"", SCALE} or stored[""] != TensorSpec("F8_E4M3", shape):
            return None
        scale = stored[SCALE]
        if scale.shape != self.grid(shape) or scale.dtype not in ("F32", "BF16", "F8_E8M0"):
            return None
        return replace(self, scale_dtype=scale.dtype)

    def moves_to(self, target: object) -> bool:
        if isinstance(target, Scaled):
            return target == replace(scaled.formats()["fp8-block-ct"], group=self.block, scale_dtype=self.scale_dtype)
        if not isinstance(target, Fp8Block) or replace(self, scale_fmt=target.scale_fmt) != target:
            return False
        return self.scale_fmt == "ue8m0" or target.scale_fmt == "float32"

    def box(self, suffix: str, box: Box, shape: tuple[int, ...]) -> Box:
        if suffix == "":
            return box
        for begin, end, size, whole in zip(box.start, box.stop, self.block, shape, strict=True):
            if begin % size or (end % size and end != whole):
                raise Misaligned(f"a cut at {begin} to {end} of {whole} does not fall on blocks of {size}")
        start = tuple(a // size for a, size in zip(box.start, self.block, strict=True))
        return Box(start, tuple(-(-b // size) for b, size in zip(box.stop, self.block, strict=True)))

    def room(self, shape: tuple[int, ...], width: int, encoding: bool) -> int:
        from dsctl.codecs import e4m3

        return e4m3.room((shape[0], shape[1]), self.block, width, encoding)

    def stated(self, shape: tuple[int, ...]) -> dict[str, bytes]:
        return {}

    def decode(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """float32(code) * scale, rounded once to `out`'s dtype.

        Raises:
            BadBlock: a scale is NaN, infinite, zero or negative.
        """
        import torch

        from dsctl.codecs import e4m3

        scales = stored[SCALE].to(torch.float32)
        refuse_bad(scales)
        e4m3.decode(stored[""].view(torch.uint8), scales, out, self.block)

    def encode(self, values: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """amax per block / 448, rounded up to a power of two where ue8m0; kept scales where they reproduce the values.

        Kept scales of another format are rounded where ue8m0. Its own need not be: releases that declare ue8m0 have
        some that are not (deepseek-ai/DeepSeek-V3 issue 961: `o_proj` of V3.1).

        Raises:
            BadBlock: a value is NaN or infinite, or would be decoded to infinity.
        """
        import torch

        from dsctl.codecs import e4m3

        codes, power_of_two = stored[""].view(torch.uint8), self.scale_fmt == "ue8m0"
        others = stored.get(OTHERS + SCALE)
        given = stored.get(KEPT + SCALE) if others is None else others
        restored = 0
        try:
            if given is None:
                scales = made = e4m3.encode(values, codes, self.block, power_of_two)
            else:
                kept = given.to(torch.float32)
                refuse_bad(kept)
                # A scale that cannot be kept gives way to one that can: 1 restores what it restores.
                if others is not None and power_of_two:
                    kept = torch.where(e4m3.is_power_of_two(kept), kept, 1.0)
                scales, same = e4m3.encode_restoring(values, kept, codes, self.block, power_of_two)
                restored, made = int(same.sum()), scales.masked_fill(same, 0.0)
        except e4m3.NotFinite as error:
            raise BadBlock("NaN or infinity", error.row, error.column) from None
        if (made >= TOO_LARGE).any():
            row, column = (made >= TOO_LARGE).nonzero()[0].tolist()
            raise BadBlock("a value too large for its scale", row, column)
        counts = {"blocks_restored": restored, "blocks_computed": scales.numel() - restored}
        stored[SCALE].copy_(scales)
        return {name: count for name, count in counts.items() if count}

    def config(self) -> dict[str, Any] | None:
        config: dict[str, Any] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": list(self.block),
        }
        return config | ({"scale_fmt": "ue8m0"} if self.scale_fmt == "ue8m0" else {})


def refuse_bad(scales: torch.Tensor) -> None:
    """Refuse a scale that cannot be one, naming its block."""
    from dsctl.codecs import e4m3

    bad = e4m3.bad_scales(scales)
    if bad is not None:
        row, column, value = bad
        raise BadBlock(f"scale {value}", row, column)
