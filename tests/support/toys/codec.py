"""A codec for the recipe: integers of eight bits with a float32 scale per row. Codes I8 [rows, columns]; scales F32
[rows, 1]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar

from dsctl.codecs.codec import CODES, SCALE, BadBlock, Form
from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Toy:
    """A value is its code times the scale of its row; the largest magnitude of a row has the code 127."""

    dialect: str = "deepseek"
    name: ClassVar[str] = "toy"
    parts: ClassVar[tuple[str, ...]] = (CODES, SCALE)
    block: ClassVar[tuple[int, int]] = (1, 1)
    surveys: ClassVar[bool] = False
    form: ClassVar[Form] = Form("int8", (1, 0), "F32", "code * scale")
    quantized: ClassVar[bool] = True
    plain: ClassVar[None] = None
    keeps_scales: ClassVar[bool] = False
    scales_follow: ClassVar[bool] = False
    scale_fmt: ClassVar[None] = None

    def specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        return {CODES: TensorSpec("I8", shape), SCALE: TensorSpec("F32", (shape[0], 1))}

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> Toy | None:
        return self if len(shape) == 2 and stored == self.specs(shape) else None

    def box(self, part: str, box: Box, shape: tuple[int, ...]) -> Box:
        return box if part == CODES else Box((box.start[0], 0), (box.stop[0], 1))

    def decode(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """code * scale in float32, rounded once to `out`'s dtype."""
        out.copy_(stored[CODES].float() * stored[SCALE])

    def encode(self, values: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """value / scale, rounded to the nearest integer.

        Raises:
            BadBlock: a value is NaN or infinite.
        """
        if not values.isfinite().all():
            raise BadBlock("a value is NaN or infinite", 0, 0)
        scales = values.float().abs().amax(1, keepdim=True) / 127
        stored[SCALE].copy_(scales.masked_fill(scales == 0, 1))
        stored[CODES].copy_((values.float() / stored[SCALE]).round_().clamp_(-127, 127))
        return {}

    def room(self, shape: tuple[int, ...], width: int, encoding: bool) -> int:
        return 16 * prod(shape)

    def stated(self, shape: tuple[int, ...]) -> dict[str, bytes]:
        return {}

    def config(self) -> dict[str, Any] | None:
        return {"quant_method": "toy"}
