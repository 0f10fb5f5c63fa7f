"""Where regions of parameters live: a layout says it, for reading and for writing alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec
from dsctl.core.params import Family, Param
from dsctl.layouts.ranks import Shares


class Slot(msgspec.Struct, frozen=True, gc=False):
    """A region of a parameter and its place: the shard (one name space of tensors), the tensor that contains it,
    the container's shape and where in it the region begins. `tensor` is the parameter's name there; what the parts of
    it are called, `dsctl.layouts.naming` says. `stack` is (index, count) where containers of one shape are stored
    stacked along a new first dimension, as routed experts may be, and None where the container is the tensor.
    """

    shard: str
    tensor: str
    region: Box
    container: tuple[int, ...]
    at: tuple[int, ...]
    stack: tuple[int, int] | None = None

    def stacked(self, spec: TensorSpec) -> TensorSpec:
        """What the stored tensor is, of which this slot's part is `spec`."""
        return spec if self.stack is None else TensorSpec(spec.dtype, (self.stack[1], *spec.shape))


class Layout(Protocol):
    """One arrangement of a checkpoint's tensors. `shares` says what ranks hold, or is None where there are none.

    `metadata` is what its files' headers say of themselves.
    """

    @property
    def name(self) -> str: ...

    @property
    def shares(self) -> Shares | None: ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    @property
    def respelled(self) -> Mapping[str, str]:
        """The dialects that this arrangement spells as another."""

    @property
    def spelled(self) -> Mapping[str, str]:
        """The dtype that headers give codes of a kind (`Form.codes`), where it is another than their dialect's."""

    @property
    def dialects(self) -> tuple[str, ...]:
        """The dialects of what it can name; none where it can name all."""

    @property
    def published(self) -> bool:
        """Whether it is that of the release itself, whole: every parameter under its own name in one name space."""

    @property
    def foldered(self) -> bool:
        """Whether every shard is a folder that is complete in itself."""

    def arranged(self, families: Iterable[Family], shares: Shares | None, alone: str = "") -> Layout:
        """This arrangement of these families; `alone` names the shard whose folder is all that is read.

        Raises:
            PlanError: it has no ranks, or needs them, or does not go with such sizes or models.
        """

    def slots(self, param: Param) -> tuple[Slot, ...]:
        """Every place where the parameter, or a region of it, is kept.

        Raises:
            PlanError: the layout has no name for it.
        """

    def decoded(self, family: Family) -> str:
        """The dtype in which it stores a family's values as they are, whatever codes hold them elsewhere; "" if not."""

    def drops_drafter(self, families: Iterable[Family]) -> bool:
        """Whether it leaves out what drafts further tokens of such a model, unless that is asked for."""

    def shard_of(self, file: str) -> str:
        """The name space that a file's tensors belong to."""

    def file(self, shard: str, home: str) -> str:
        """The file of a shard's tensor which the whole checkpoint keeps in the file `home`."""

    def home(self, file: str) -> str | None:
        """The file in which the whole checkpoint keeps a file's tensors, where its name tells that."""

    def texts(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        """Further files that go with this arrangement of a model with this `config.json`."""


def native(families: Iterable[Family]) -> bool:
    """Whether a model is published under the names of DeepSeek's reference model, as V4 is."""
    return any(family.template == "embed.weight" for family in families)


def whole(param: Param, shard: str, tensor: str) -> Slot:
    """The slot of a parameter kept whole in a tensor of its own."""
    shape = param.family.shape
    return Slot(shard, tensor, Box.whole(shape), shape, (0,) * len(shape))
