"""How a region of a parameter is stored: what every codec says of itself, and what two of them have in common."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec

if TYPE_CHECKING:
    import torch

# The parts that a codec may store for a parameter. What each is called in a file, a dialect says (layouts/naming.py).
VALUES, CODES, SCALE, GLOBAL_SCALE, SHAPE = "values", "codes", "scale", "global_scale", "shape"
# The scale of activations, which loaders want beside the weights.
INPUT_SCALE = "input_scale"
# Those that hold scales.
SCALES = (SCALE, GLOBAL_SCALE)
# Marks before a part's name: scales of an earlier encoding, of an encoding by another codec, and a largest magnitude.
KEPT, OTHERS, PEAK = "kept:", "others:", "peak:"


class Misaligned(Exception):
    """A cut does not fall on the boundaries of what the codec stores (a block, a packed word)."""


class BadBlock(Exception):
    """Values or scales that cannot be stored or read: what is wrong, and in which block of the region at hand."""

    def __init__(self, what: str, row: int, column: int) -> None:
        super().__init__(f"{what} in block [{row}, {column}]")
        self.what, self.row, self.column = what, row, column


class Inexact(BadBlock):
    """A block whose values another form cannot hold."""


# What an audit counts where one form becomes another: blocks looked at, and those of them that lost something.
SWEPT, INEXACT = "blocks_recast", "blocks_inexact"


class Form(NamedTuple):
    """What stored bits mean, whatever their tensors are called: two codecs of one form hold the same bytes.

    `codes` is how values are coded (a dtype where they are stored as they are), `group` the rows and columns that
    share a scale (0 columns: the whole row), `scale` the scales' own type, `product` what a code becomes a value by.
    `powers` promises that every scale is a power of two.
    """

    codes: str
    group: tuple[int, int] = (1, 1)
    scale: str = ""
    product: str = ""
    powers: bool = False


class Codec(Protocol):
    """One stored form of a matrix, under the names of a dialect. Frozen, hashable and picklable; one that is quantized
    is a dataclass with a field `dialect`, which a model may replace.

    `parts` are what is stored for a parameter, in an order that codecs of one form share. `block` is the granularity
    of rows and columns at which a region can be stored on its own. `surveys` is whether `encode` wants, as `PEAK`, the
    largest magnitude of the whole parameter and of those that loaders fuse with it (float32 [1]).
    """

    @property
    def name(self) -> str:
        """What people call it: a name of `CODECS`, or one made like those."""

    @property
    def dialect(self) -> str:
        """The dialect that names its parts: a name of `dsctl.layouts.naming.DIALECTS`."""

    @property
    def parts(self) -> tuple[str, ...]: ...

    @property
    def block(self) -> tuple[int, int]: ...

    @property
    def surveys(self) -> bool: ...

    @property
    def form(self) -> Form:
        """What its bits mean."""

    @property
    def quantized(self) -> bool:
        """Whether values are stored as codes and scales."""

    @property
    def plain(self) -> str | None:
        """The dtype in which values are stored as they are, or None where they are coded."""

    @property
    def keeps_scales(self) -> bool:
        """Whether `encode` takes the scales of an earlier encoding, so that a way back may keep them."""

    @property
    def scales_follow(self) -> bool:
        """Whether `encode` makes most scales of an earlier encoding again, so that only the others need be kept.

        `dsctl.codecs.native_fp4.odd` finds those.
        """

    @property
    def scale_fmt(self) -> str | None:
        """What a config calls the format of its scales, `float32` or `ue8m0`; None where configs do not speak of it."""

    def __hash__(self) -> int: ...

    def specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        """What is stored for a parameter of this shape, by part."""

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> Codec | None:
        """The codec (this one, or a variant such as another scale dtype) that reads parts so stored, if any does."""

    def box(self, part: str, box: Box, shape: tuple[int, ...]) -> Box:
        """Which box of a stored part belongs to a region of the parameter.

        Raises:
            Misaligned: the region's edges cut what is stored as one.
        """

    def decode(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """Write the values of a region into `out` ([rows, columns], a float dtype).

        Raises:
            BadBlock: a scale cannot be one.
        """

    def encode(self, values: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Fill the preallocated stored parts of a region from its values; the counts go to the audit.

        `stored` may hold `KEPT + part` tensors of an earlier encoding by this codec, or `OTHERS + part` tensors of one
        by another, that shall be used where they reproduce the values exactly: the former as they are, even where this
        codec's recipe would not make them, the latter only where it could have.

        Raises:
            BadBlock: a value is NaN, infinite or too large for the format.
        """

    def room(self, shape: tuple[int, ...], width: int, encoding: bool) -> int:
        """The most bytes that `encode`, or else `decode`, of a region of this shape takes on the processor.

        They come on top of the values, of `width` bytes each, and of the stored parts.
        """

    def stated(self, shape: tuple[int, ...]) -> dict[str, bytes]:
        """Stored parts that follow from the shape alone: written when planned, never read."""

    def config(self) -> dict[str, Any] | None:
        """The `quantization_config` that tells loaders of this format, or None."""


@lru_cache
def moves_to(source: Codec, target: Codec) -> bool:
    """Whether bytes stored by one codec are already what another asks for, so that they can be moved."""
    held, wanted = source.form, target.form
    return held == wanted or (held.powers and held._replace(powers=False) == wanted)
