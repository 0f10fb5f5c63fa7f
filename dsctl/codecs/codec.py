"""The stored form of a region of a parameter: the interface of codecs, and relations between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dsctl.core.boxes import Box
from dsctl.core.header import TensorSpec

if TYPE_CHECKING:
    import torch

# The parts that a codec may store for a parameter. A dialect names them in files (layouts/naming.py).
VALUES, CODES, SCALE, GLOBAL_SCALE, SHAPE = "values", "codes", "scale", "global_scale", "shape"
# The scale of activations, which loaders expect beside the weights.
INPUT_SCALE = "input_scale"
# The parts that hold scales, and all parts beside the codes that an encoding chooses.
SCALES = (SCALE, GLOBAL_SCALE)
CHOSEN = (*SCALES, INPUT_SCALE)
# Prefixes of a part's name: scales of an earlier encoding, scales of a different codec, and a largest magnitude.
KEPT, OTHERS, PEAK = "kept:", "others:", "peak:"


class Misaligned(Exception):
    """A cut goes through a block or a packed word."""


class BadBlock(Exception):
    """Values or scales that cannot be stored or read: the problem, and the block of the current region."""

    def __init__(self, what: str, row: int, column: int) -> None:
        super().__init__(f"{what} in block [{row}, {column}]")
        self.what, self.row, self.column = what, row, column


class Inexact(BadBlock):
    """A block whose values a different form cannot hold."""


# Audit counts of a recast: blocks, and inexact blocks among them.
SWEPT, INEXACT = "blocks_recast", "blocks_inexact"


class Form(NamedTuple):
    """The meaning of stored bits, independent of tensor names: two codecs with the same form hold the same bytes.

    `codes` is the coding of values (a dtype if they are unquantized), `group` the rows and columns that share a scale
    (0 columns: the whole row), `scale` the type of the scales, `product` the formula from code to value. `powers`
    promises that every scale is a power of two.
    """

    codes: str
    group: tuple[int, int] = (1, 1)
    scale: str = ""
    product: str = ""
    powers: bool = False


class Codec(Protocol):
    """One stored form of a matrix, with a dialect's names. Frozen, hashable, picklable; a quantized one is a dataclass
    with a field `dialect`, which a model may replace.

    `parts` are the stored parts of a parameter, in the same order for codecs of one form. `block` is the granularity of
    rows and columns at which a region can be stored on its own. `surveys`: `encode` needs, as `PEAK`, the largest
    magnitude of the whole parameter and of those that loaders fuse with it (float32 [1]).
    """

    @property
    def name(self) -> str:
        """Its printed name: a key of `CODECS`, or one built the same way."""

    @property
    def dialect(self) -> str:
        """The dialect of its parts' names: a key of `dsctl.layouts.naming.DIALECTS`."""

    @property
    def parts(self) -> tuple[str, ...]: ...

    @property
    def block(self) -> tuple[int, int]: ...

    @property
    def surveys(self) -> bool: ...

    @property
    def form(self) -> Form:
        """The meaning of its bits."""

    @property
    def quantized(self) -> bool:
        """Whether values are stored as codes and scales."""

    @property
    def plain(self) -> str | None:
        """The dtype of unquantized values, or None if values are coded."""

    @property
    def keeps_scales(self) -> bool:
        """Whether `encode` accepts the scales of an earlier encoding, so that the way back can use them."""

    @property
    def scales_follow(self) -> bool:
        """Whether `encode` reproduces most scales of an earlier encoding, so that only the others must be kept.

        `dsctl.codecs.native_fp4.odd` finds those.
        """

    @property
    def scale_fmt(self) -> str | None:
        """The config's name for the format of its scales, `float32` or `ue8m0`; None if configs do not declare it."""

    def __hash__(self) -> int: ...

    def specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        """The stored specs of a parameter of this shape, by part."""

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> Codec | None:
        """The codec that reads parts with these specs: this one, a variant such as one with F32 scales, or None."""

    def box(self, part: str, box: Box, shape: tuple[int, ...]) -> Box:
        """The box of a stored part that belongs to a region of the parameter.

        Raises:
            Misaligned: the region's edges go through a stored unit.
        """

    def decode(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> bool | None:
        """Write the values of a region into `out` ([rows, columns], a float dtype).

        Returns whether a code may be NaN, or None if decoding did not look for such codes.

        Raises:
            BadBlock: a scale is impossible.
        """

    def encode(self, values: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Fill the preallocated stored parts of a region from its values; the counts go to the audit.

        `stored` may hold `KEPT + part` tensors of an earlier encoding by this codec, or `OTHERS + part` tensors of a
        different codec. They are used if they reproduce the values exactly: the former unchanged, even if this codec's
        recipe would choose differently, the latter only if the recipe could have chosen them.

        Raises:
            BadBlock: a value is NaN, infinite or too large for the format.
        """

    def room(self, shape: tuple[int, ...], width: int, encoding: bool) -> int:
        """The most bytes that `encode`, or else `decode`, of a region of this shape needs on the processor,
        beyond the values (`width` bytes each) and the stored parts.
        """

    def stated(self, shape: tuple[int, ...]) -> dict[str, bytes]:
        """Stored parts that depend on the shape alone: written at planning, never read."""

    def config(self) -> dict[str, Any] | None:
        """The `quantization_config` that declares this format to loaders, or None."""


@lru_cache
def moves_to(source: Codec, target: Codec) -> bool:
    """Whether bytes stored by one codec already have the other's form, so that they can be moved."""
    held, wanted = source.form, target.form
    return held == wanted or (held.powers and held._replace(powers=False) == wanted)
