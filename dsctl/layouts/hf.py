"""The published layout: every parameter whole, under its own name, in files joined by an index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsctl.layouts import Slot
    from dsctl.models import Param


@dataclass(frozen=True, slots=True)
class Hf:
    """One name space over all files; a codec's further tensors are named by the parameter's name and their suffix."""

    name: str = "hf"

    def slots(self, param: Param) -> tuple[Slot, ...]:
        from dsctl.layouts import whole

        return (whole(param, "", param.name),)

    def stored(self, tensor: str, suffix: str) -> str:
        return tensor + suffix

    def shard_of(self, file: str) -> str:
        return ""
