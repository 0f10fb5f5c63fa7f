"""Places of parameters' regions. A layout defines them, for reading and for writing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from dsctl.core.boxes import Box
from dsctl.core.errors import PlanError
from dsctl.core.header import TensorSpec
from dsctl.core.params import Family, Param
from dsctl.layouts.ranks import Shares


class Slot(msgspec.Struct, frozen=True, gc=False):
    """A region of a parameter and its place: the shard (one name space of tensors), the tensor that contains it,
    the container's shape and the region's start in it. `tensor` is the parameter's name there; `dsctl.layouts.naming`
    names its parts. `stack` is (index, count) where containers of one shape are stored
    stacked along a new first dimension, as routed experts may be, and None where the container is the tensor.
    `padded`: the rest of the container is padding, zeros with a scale of 1.
    """

    shard: str
    tensor: str
    region: Box
    container: tuple[int, ...]
    at: tuple[int, ...]
    stack: tuple[int, int] | None = None
    padded: bool = False

    def stacked(self, spec: TensorSpec) -> TensorSpec:
        """The spec of the stored tensor that contains this slot's part `spec`."""
        return spec if self.stack is None else TensorSpec(spec.dtype, (self.stack[1], *spec.shape))


class Layout(Protocol):
    """One arrangement of a checkpoint's tensors. `shares` says which rank holds what, or is None without ranks.

    `metadata` is the `__metadata__` of its files' headers.
    """

    @property
    def name(self) -> str: ...

    @property
    def shares(self) -> Shares | None: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    @property
    def respelled(self) -> Mapping[str, str]:
        """Dialects that this arrangement replaces, each with its replacement."""

    @property
    def spelled(self) -> Mapping[str, str]:
        """The dtype of codes in headers, by kind (`Form.codes`), if it differs from the dialect's."""

    @property
    def dialects(self) -> tuple[str, ...]:
        """The dialects that it can name; empty if it can name all."""

    @property
    def published(self) -> bool:
        """Whether it is the release's own: every parameter under its own name, whole, in one name space."""

    @property
    def foldered(self) -> bool:
        """Whether every shard is a folder with its own config and index."""

    def arranged(self, families: Iterable[Family], shares: Shares | None, alone: str = "") -> Layout:
        """This arrangement for these families; `alone` names the shard if only its folder is read.

        Raises:
            UsageError: it needs ranks. PlanError: it cannot have them, or does not support these sizes or this model.
        """

    def slots(self, param: Param) -> tuple[Slot, ...]:
        """Every place of the parameter or a region of it.

        Raises:
            PlanError: the layout does not have the parameter.
        """

    def decoded(self, family: Family) -> str:
        """The dtype in which it stores a family unquantized even if a release quantizes it; "" if it does not."""

    def drops_drafter(self, families: Iterable[Family]) -> bool:
        """Whether it omits the drafter of such a model by default."""

    def shard_of(self, file: str) -> str:
        """The name space of a file's tensors."""

    def file(self, shard: str, home: str) -> str:
        """The file of a shard for a tensor that the whole checkpoint stores in the file `home`."""

    def home(self, file: str) -> str | None:
        """The whole checkpoint's file for the tensors of a shard's file, if the file name shows it."""

    def texts(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        """Additional files of this arrangement, for a model with this `config.json`."""


def native(families: Iterable[Family]) -> bool:
    """Whether a model is published under the reference model's names, as V4 is."""
    return any(family.template == "embed.weight" for family in families)


def refuse_own_experts(layout: str, families: Iterable[Family]) -> None:
    """Refuse a layout that joins experts for a model whose experts have names of its own.

    Raises:
        PlanError: no loader of such a layout is known.
    """
    usual = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
    other = next((one.template for one in families if one.experts and not one.template.endswith(usual)), None)
    if other is not None:
        what = f"layout {layout}: no loader reads joined tensors under this model's own names, such as {other}"
        raise PlanError(what, hint="choose --layout published")


def whole(param: Param, shard: str, tensor: str) -> Slot:
    """The slot of a whole parameter in its own tensor."""
    shape = param.family.shape
    return Slot(shard, tensor, Box.whole(shape), shape, (0,) * len(shape))
