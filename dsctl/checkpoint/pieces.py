"""The result of matching a checkpoint: pieces of parameters and faults. Data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from dsctl.codecs.codec import CHOSEN, Codec
from dsctl.core.header import TensorRef
from dsctl.core.params import Param
from dsctl.layouts.layout import Slot


def cover(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    """One piece for every region; of several copies the first. Regions of one layout are equal or disjoint."""
    if len(pieces) == 1:
        return pieces
    return tuple({piece.slot.region: piece for piece in reversed(pieces)}.values())[::-1]


class Fault(NamedTuple):
    """A problem of a checkpoint's files: a stable code, a place and a description; `details` lists its consequences."""

    code: str
    where: str
    what: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Piece(msgspec.Struct, frozen=True, gc=False):
    """A stored region of a parameter: its slot, the codec that reads it, and its tensors in the codec's order."""

    slot: Slot
    codec: Codec
    refs: tuple[TensorRef, ...]

    @property
    def nbytes(self) -> int:
        return sum(ref.nbytes for ref in self.refs)

    @property
    def chosen(self) -> dict[str, TensorRef]:
        """The tensors beside the codes that its encoding chose, by part."""
        parts = zip(self.codec.parts, self.refs, strict=True)
        return {part: ref for part, ref in parts if part in CHOSEN}


@dataclass(slots=True)
class Survey:
    """Every parameter's pieces, the tensors without a parameter, and the faults; `mtp`: it has an MTP layer."""

    pieces: dict[str, tuple[Piece, ...]] = field(default_factory=dict)
    missing: list[Param] = field(default_factory=list)
    extra: list[TensorRef] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    mtp: set[Fault] = field(default_factory=set)


# Faults of missing tensors, and all faults that a wrong name or shape can cause.
ABSENT = ("missing-tensor", "missing-weight", "missing-scale")
SHAPED = (*ABSENT, "wrong-shape", "wrong-scale", "not-packed", "other-grid", "extra-tensor")
