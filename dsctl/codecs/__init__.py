"""How a region of a parameter is stored. A codec says what it will store apart from storing it; one file per format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from dsctl.core.boxes import Box
from dsctl.core.errors import FormatError
from dsctl.core.header import TensorSpec

if TYPE_CHECKING:
    import torch


class Misaligned(Exception):
    """A cut does not fall on the boundaries of what the codec stores (a block, a packed word)."""


class BadBlock(Exception):
    """Values or scales that cannot be stored or read: what is wrong, and in which block of the region at hand."""

    def __init__(self, what: str, row: int, column: int) -> None:
        super().__init__(f"{what} in block [{row}, {column}]")
        self.what, self.row, self.column = what, row, column


class Codec(Protocol):
    """One stored form of a matrix.

    `suffixes` are appended to the parameter's name for the stored tensors. `block` is the granularity of rows and
    columns at which a region can be stored on its own. `surveys` is whether `encode` wants, as `PEAK`, the largest
    magnitude of the whole parameter and of those that loaders fuse with it (float32 [1]). Frozen, hashable and
    picklable.
    """

    @property
    def name(self) -> str: ...

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    @property
    def block(self) -> tuple[int, int]: ...

    @property
    def surveys(self) -> bool: ...

    def specs(self, shape: tuple[int, ...]) -> dict[str, TensorSpec]:
        """What is stored for a parameter of this shape, by suffix."""

    def reads(self, shape: tuple[int, ...], stored: Mapping[str, TensorSpec]) -> Codec | None:
        """The codec (this one, or a variant such as another scale dtype) that reads tensors so stored, if any does."""

    def moves_to(self, target: Codec) -> bool:
        """Whether bytes stored by this codec are already what `target` asks for, so that they can be moved."""

    def box(self, suffix: str, box: Box, shape: tuple[int, ...]) -> Box:
        """Which part of a stored tensor belongs to a region of the parameter.

        Raises:
            Misaligned: the region's edges cut what is stored as one.
        """

    def decode(self, stored: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
        """Write the values of a region into `out` ([rows, columns], a float dtype).

        Raises:
            BadBlock: a scale cannot be one.
        """

    def encode(self, values: torch.Tensor, stored: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Fill the preallocated stored tensors of a region from its values; the counts go to the audit.

        `stored` may hold `KEPT + suffix` tensors of an earlier encoding by this codec, or `OTHERS + suffix` tensors of
        one by another, that shall be used where they reproduce the values exactly: the former as they are, even where
        this codec's recipe would not make them, the latter only where it could have.

        Raises:
            BadBlock: a value is NaN, infinite or too large for the format.
        """

    def room(self, shape: tuple[int, ...], width: int, encoding: bool) -> int:
        """The most bytes that `encode`, or else `decode`, of a region of this shape takes on the processor.

        They come on top of the values, of `width` bytes each, and of the stored tensors.
        """

    def stated(self, shape: tuple[int, ...]) -> dict[str, bytes]:
        """Stored tensors that follow from the shape alone, by suffix: written when planned, never read."""

    def config(self) -> dict[str, Any] | None:
        """The `quantization_config` that tells loaders of this format, or None."""


KEPT = "kept:"
OTHERS = "others:"
PEAK = "peak:"
# The suffixes of stored tensors that hold scales.
BLOCK_SCALES = ("_scale_inv", "_scale")
SCALES = (*BLOCK_SCALES, "_global_scale")

from dsctl.codecs import dress, fp4, packed, scaled  # noqa: E402
from dsctl.codecs.fp8_block import Fp8Block  # noqa: E402
from dsctl.codecs.plain import Plain  # noqa: E402

CODECS: dict[str, Codec] = {
    "bf16": Plain("BF16"),
    "f16": Plain("F16"),
    "f32": Plain("F32"),
    "fp8-block": Fp8Block(),
    "fp8-block-e8m0": Fp8Block(scale_fmt="ue8m0", scale_dtype="F8_E8M0"),
    **scaled.formats(),
    **packed.formats(),
    **fp4.formats(),
}


def declared(quantization: Mapping[str, Any] | None) -> tuple[Codec, ...]:
    """The codecs that a `quantization_config` speaks of, in its order.

    Raises:
        FormatError: it names a method's block or group that no codec knows.
    """
    if not quantization:
        return ()
    if quantization.get("quant_method") != dress.METHOD:
        return Fp8Block.declared(quantization)
    return tuple([_of_weights(weights) for weights in dress.weights(quantization)])


def readable(quantization: Mapping[str, Any] | None) -> tuple[Codec, ...]:
    """The codecs to try on stored tensors: those declared, then all others that could be meant.

    Floats tell themselves what they are. Integers under one method may be anything under another (FP8 codes have been
    stored as such), so where the config names a method that some codec knows, they are read by that method alone.

    Raises:
        FormatError: see `declared`.
    """
    method = (quantization or {}).get("quant_method")
    known = isinstance(method, str) and method in {_method(codec) for codec in CODECS.values()}
    others = [codec for codec in CODECS.values() if not known or _floats(codec) or _method(codec) == method]
    return tuple(dict.fromkeys((*declared(quantization), *others)))


def _method(codec: Codec) -> str | None:
    return (codec.config() or {}).get("quant_method")


def _floats(codec: Codec) -> bool:
    return codec.specs(codec.block)[codec.suffixes[0]].dtype[0] in "BF"


def _of_weights(weights: Mapping[str, Any]) -> Codec:
    """The codec of one config group's weights.

    Raises:
        FormatError: none is.
    """
    for codec in CODECS.values():
        if dress.same(weights, codec.config()):
            return codec
    size = weights.get("group_size")
    for packed_ in packed.formats().values():
        other = replace(packed_, name=f"int{packed_.bits}-group-{size}", size=size) if dress.sensible(size) else packed_
        if dress.same(weights, other.config()):
            return other
    raise FormatError(f"config.json: weights of {dress.told(weights)} are no format that dsctl knows")
