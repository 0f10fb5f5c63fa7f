"""Values stored as they are, in one tensor of a float dtype."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dsctl.boxes import Box
from dsctl.codecs import BadBlock
from dsctl.header import TensorSpec

if TYPE_CHECKING:
    import torch

FLOATS = ("BF16", "F16", "F32")


@dataclass(frozen=True, slots=True)
class Plain:
    """One tensor with the parameter's own name and shape."""

    dtype: str = "BF16"
    surveys: ClassVar[bool] = False
    suffixes: tuple[str, ...] = ("",)
    block: tuple[int, int] = (1, 1)

    @property
    def name(self) -> str:
        return self.dtype.lower()

    def specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        return {"": TensorSpec(self.dtype, shape)}

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> Plain | None:
        return self if stored == self.specs(shape) else None

    def moves_to(self, target: object) -> bool:
        return self == target

    def box(self, suffix: str, box: Box, shape: tuple[int, ...]) -> Box:
        return box

    def stated(self, shape: tuple[int, ...]) -> dict[str, bytes]:
        return {}

    def decode(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """Cast with round to nearest even, as `torch.Tensor.to`."""
        out.copy_(stored[""])

    def encode(self, values: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Cast with round to nearest even.

        Raises:
            BadBlock: a finite value overflows to infinity.
        """
        out = stored[""]
        out.copy_(values)
        if self.dtype != "F16":
            return {}
        overflow = (out.isinf() & values.isfinite()).nonzero()
        if len(overflow):
            place = [*overflow[0].tolist(), 0]
            raise BadBlock("value too large for F16", place[0], place[1])
        return {}

    def config(self) -> dict[str, Any] | None:
        return None
