"""Where regions of parameters live: a layout says it, for reading and for writing alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from dsctl.boxes import Box
from dsctl.layouts.hf import Hf
from dsctl.models import Param


@dataclass(frozen=True, slots=True)
class Slot:
    """A region of a parameter and its place: the shard (one name space of tensors), the tensor that contains it,
    the container's shape and where in it the region begins. `tensor` is the weight's name; a codec's further tensors
    are named by `Layout.stored`.
    """

    shard: str
    tensor: str
    region: Box
    container: tuple[int, ...]
    at: tuple[int, ...]


class Layout(Protocol):
    """One arrangement of a checkpoint's tensors."""

    @property
    def name(self) -> str: ...

    def slots(self, param: Param) -> tuple[Slot, ...]:
        """Every place where the parameter, or a region of it, is kept."""

    def stored(self, tensor: str, suffix: str) -> str:
        """The stored tensor's name for a codec's suffix."""

    def shard_of(self, file: str) -> str:
        """The name space that a file's tensors belong to."""


def whole(param: Param, shard: str, tensor: str) -> Slot:
    """The slot of a parameter kept whole in a tensor of its own."""
    return Slot(shard, tensor, Box.whole(param.shape), param.shape, (0,) * len(param.shape))


LAYOUTS: dict[str, Layout] = {"hf": Hf()}


def recognise(files: Iterable[str]) -> Layout:
    """The layout of a checkpoint with these safetensors files."""
    return LAYOUTS["hf"]
