"""Where regions of parameters live: a layout says it, for reading and for writing alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec
from dsctl.core.params import Family, Param
from dsctl.layouts.ranks import Ranks, Shares


class Slot(NamedTuple):
    """A region of a parameter and its place: the shard (one name space of tensors), the tensor that contains it,
    the container's shape and where in it the region begins. `tensor` is the weight's name; a codec's further tensors
    are named by `Layout.stored`. `stack` is (index, count) where containers of one shape are stored stacked along a
    new first dimension, as routed experts may be, and None where the container is the tensor.
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

    def stored(self, tensor: str, suffix: str) -> str:
        """The stored tensor's name for a codec's suffix."""

    def shard_of(self, file: str) -> str:
        """The name space that a file's tensors belong to."""

    def file(self, shard: str, home: str) -> str:
        """The file of a shard's tensor which the whole checkpoint keeps in the file `home`."""

    def home(self, file: str) -> str | None:
        """The file in which the whole checkpoint keeps a file's tensors, where its name tells that."""

    def texts(self, config: Mapping[str, Any]) -> dict[str, bytes]:
        """Further files that go with this arrangement of a model with this `config.json`."""


def whole(param: Param, shard: str, tensor: str) -> Slot:
    """The slot of a parameter kept whole in a tensor of its own."""
    return Slot(shard, tensor, Box.whole(param.shape), param.shape, (0,) * len(param.shape))


from dsctl.layouts.deepseek import Deepseek  # noqa: E402
from dsctl.layouts.fused import Fused  # noqa: E402
from dsctl.layouts.hf import Hf  # noqa: E402
from dsctl.layouts.vllm import Vllm  # noqa: E402

LAYOUTS: dict[str, Layout] = {
    "hf": Hf(),
    "deepseek": Deepseek(),
    "fused": Fused(),
    "stacked": Fused("stacked", True),
    "vllm": Vllm(),
}
# Layouts that leave the MTP layer out unless it is asked for; the last has no place for it.
WITHOUT_MTP = ("deepseek", "vllm")


def usual_ep(name: str, tp: int) -> int:
    """The expert-parallel parts of a layout where none are asked for: DeepSeek's has as many as ranks."""
    return tp if name == "deepseek" else 1


def follows(name: str, ranks: Ranks) -> bool:
    """Whether a layout so spread has as many expert-parallel parts as tensor-parallel ranks, whatever their number."""
    return name == "deepseek" or (name == "vllm" and ranks.ep == ranks.tp > 1)
