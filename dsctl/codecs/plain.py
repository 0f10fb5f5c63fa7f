"""Unquantized values in one tensor of a float dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from dsctl.codecs.codec import VALUES, BadBlock, Form, Misaligned
from dsctl.codecs.grids import CHUNK, chunks
from dsctl.core.boxes import Box
from dsctl.core.header import DTYPE_BITS, TensorSpec

if TYPE_CHECKING:
    import torch

FLOATS = ("BF16", "F16", "F32")


class Rounded(BadBlock):
    """A value that a shorter dtype cannot hold."""


@dataclass(frozen=True, slots=True)
class Plain:
    """One tensor with the parameter's own name and shape. `exact`: refuse values that would be rounded."""

    dtype: str = "BF16"
    exact: bool = field(default=False, kw_only=True)
    block: ClassVar[tuple[int, int]] = (1, 1)
    surveys: ClassVar[bool] = False
    dialect: ClassVar[str] = "deepseek"
    parts: ClassVar[tuple[str, ...]] = (VALUES,)
    quantized: ClassVar[bool] = False
    keeps_scales: ClassVar[bool] = False
    scales_follow: ClassVar[bool] = False
    scale_fmt: ClassVar[None] = None

    @property
    def name(self) -> str:
        return self.dtype.lower()

    @property
    def plain(self) -> str | None:
        return self.dtype

    @property
    def form(self) -> Form:
        return Form(self.dtype)

    def specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        return {VALUES: TensorSpec(self.dtype, shape)}

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> Plain | None:
        return self if stored == self.specs(shape) else None

    def box(self, part: str, box: Box, shape: tuple[int, ...]) -> Box:
        bits = DTYPE_BITS[self.dtype]
        if bits >= 8 or not shape:
            return box
        (*first, begin), (*last, end) = box.start, box.stop
        if begin * bits % 8 or end * bits % 8:
            raise Misaligned(f"{self.dtype} from {begin} to {end} of {shape[-1]} is not whole bytes")
        return Box((*first, begin * bits // 8), (*last, end * bits // 8))

    def room(self, shape: tuple[int, ...], width: int, encoding: bool) -> int:
        # Magnitudes of F16 and a mask of infinite ones; or values again and a mask of different ones.
        return 8 * min(prod(shape), CHUNK) if (self.dtype == "F16" or self.exact) and encoding else 0

    def stated(self, shape: tuple[int, ...]) -> dict[str, bytes]:
        return {}

    def decode(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """Cast with round to nearest even, as `torch.Tensor.to`."""
        out.copy_(stored[VALUES])

    def encode(self, values: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Cast with round to nearest even.

        Raises:
            BadBlock: a finite value overflows to infinity.
            Rounded: `exact`, and a value would change.
        """
        out = stored[VALUES]
        out.copy_(values)
        if self.exact:
            self._refuse_rounded(values, out)
        if self.dtype != "F16" or not out.numel():
            return {}
        whole = out.view(-1, 1) if out.dim() < 2 else out.view(len(out), -1)
        before = values.reshape(whole.shape)
        for rows, _ in chunks(whole.shape[0], whole.shape[1], (1, 1)):
            # Infinities are rare: without one, the values need no check.
            if not (infinite := whole[rows].isinf()).any():
                continue
            overflow = (infinite & before[rows].isfinite()).nonzero()
            if len(overflow):
                row, column = overflow[0].tolist()
                raise BadBlock("value too large for F16", row + rows.start, column)
        return {}

    def _refuse_rounded(self, values: torch.Tensor, out: torch.Tensor) -> None:
        before, after = (one.reshape(-1, 1) if one.dim() < 2 else one.reshape(len(one), -1) for one in (values, out))
        for rows, _ in chunks(before.shape[0], before.shape[1], (1, 1)):
            other = (after[rows] != before[rows]) & ~before[rows].isnan()
            if other.any():
                row, column = other.nonzero()[0].tolist()
                raise Rounded(f"value that {self.dtype} cannot hold", row + rows.start, column)

    def config(self) -> dict[str, Any] | None:
        return None


TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
